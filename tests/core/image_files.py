"""Image files, parquet files and folders that tests of the sources write and read back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from mithridate.core.data import ImageData


def pixels(count: int, seed: int = 0, side: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def write_parquet(
    file: Path,
    images: list[bytes | None],
    labels: object,
    *,
    names: list[str] | None = None,
    image: str = "img",
    label: str = "label",
    struct: bool = True,
    row_group_size: int = 3,
) -> Path:
    values = (
        pa.array([{"bytes": data, "path": "x.png"} for data in images]) if struct else pa.array(images, pa.binary())
    )
    table = pa.table({image: values, label: labels})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=row_group_size)
    return file


def write_folder(root: Path, counts: dict[str, int], seed: int = 0, side: int = 4) -> dict[str, np.ndarray]:
    written = {}
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for k, array in enumerate(pixels(count, seed * 100 + number, side)):
            Image.fromarray(array).save(root / name / f"{k:03}.png")
            written[f"{name}/{k:03}"] = array
    return written


def torch_pair() -> tuple[TensorDataset, TensorDataset]:
    """Training and test set as a user's function would return them."""
    train, test = (
        TensorDataset(torch.from_numpy(pixels(count, seed)).permute(0, 3, 1, 2), torch.arange(count) % 3)
        for count, seed in ((12, 5), (6, 6))
    )
    return train, test


def images_of(data: ImageData) -> np.ndarray:
    """Visible images as [N, H, W, C]."""
    return data.pixels(data.ids).permute(0, 2, 3, 1).numpy()
