"""SLIC superpixels as a graph."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mithridate.core.extras import extra
from mithridate.lifting.graph import Graph, from_labels


def slic(image: Tensor, cells: int, *, compactness: float = 10.0, neighbours: int = 4) -> Graph:
    """Cuts an image into cells of about one size: k-means in colour and place, then connected.

    Reference: Achanta, Shaji, Smith, Lucchi, Fua, Süsstrunk. "SLIC Superpixels Compared to State-of-the-Art Superpixel
    Methods". PAMI 34(11), 2012; as scikit-image does it, with colours in Lab.

    Args:
        image: [H, W, 3] in [0, 1].
        cells: About how many.
        compactness: How much place counts beside colour.
        neighbours: As for `pixel_grid`.

    Raises:
        MissingExtra: scikit-image is not installed.
        ValueError: An image of another shape, or no cells.
    """
    if image.ndim != 3 or image.shape[2] != 3 or cells < 1:
        raise ValueError(f"SLIC needs an image [H, W, 3] and 1 or more cells, not {list(image.shape)} and {cells}")
    segmentation: Any = extra("skimage.segmentation", "image", "SLIC")
    found = segmentation.slic(
        image.detach().cpu().double().numpy(), n_segments=cells, compactness=compactness, start_label=0, channel_axis=-1
    )
    return from_labels(found, neighbours=neighbours)
