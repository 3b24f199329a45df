"""Models and data in the hands of other libraries, and back: ART, foolbox, AutoAttack, torch loaders, `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler, default_collate

from mithridate.core import models
from mithridate.core.data import ImageData
from mithridate.core.extras import extra
from mithridate.core.hub import list_dataset
from mithridate.core.learners import TrainingImages
from mithridate.core.readers import read_dataset

# --- models ----------------------------------------------------------------------------------------------------------


def art_classifier(
    model: nn.Module, shape: tuple[int, int, int], classes: int, *, optimizer: torch.optim.Optimizer | None = None
) -> Any:
    """Returns a model as a `PyTorchClassifier` of the Adversarial Robustness Toolbox (ART).

    Args:
        model: Images [B, C, H, W] in [0, 1] to logits [B, K], such as ``fitted.models[0]``; the same module, in eval
            mode. A module that normalises keeps doing so: ART sees images in [0, 1].
        shape: (C, H, W).
        classes: K.
        optimizer: Only for what trains the model further.

    Raises:
        MissingExtra: ART cannot be imported.
        ValueError: The module does not map such images to K logits.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> judge = art_classifier(model, (1, 2, 2), 3)
    >>> judge.predict(np.zeros((5, 1, 2, 2), dtype=np.float32)).shape
    (5, 3)
    """
    art = extra("art.estimators.classification", "judges", "art_classifier")
    _check(model, shape, classes)
    return art.PyTorchClassifier(
        model.eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=classes,
        optimizer=optimizer,
        clip_values=(0.0, 1.0),
        device_type="gpu" if _device(model).type == "cuda" else "cpu",
    )


def foolbox_model(model: nn.Module) -> Any:
    """Returns a model as a `foolbox.PyTorchModel` of images in [0, 1], in eval mode.

    Raises:
        MissingExtra: foolbox cannot be imported.

    >>> judge = foolbox_model(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    >>> judge(torch.zeros(5, 1, 2, 2)).shape
    torch.Size([5, 3])
    """
    foolbox = extra("foolbox", "judges", "foolbox_model")
    return foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=_device(model))


def auto_attack_model(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Returns what AutoAttack and torchattacks take: images [B, C, H, W] in [0, 1] to logits [B, K], deterministic.

    The module is put in eval mode, and its weights need no gradient any more: the gradients asked for are those of
    images.

    >>> network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(4, 2))
    >>> forward = auto_attack_model(network)
    >>> network.training, network[2].weight.requires_grad, forward(torch.zeros(1, 1, 2, 2)).shape
    (False, False, torch.Size([1, 2]))
    """
    return model.eval().requires_grad_(False)


def _check(model: nn.Module, shape: tuple[int, int, int], classes: int) -> None:
    models.check_logits("the model", model, classes, shape, "give the shape of its images and its number of classes")


def _device(model: nn.Module) -> torch.device:
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


# --- torch loaders ---------------------------------------------------------------------------------------------------


def to_loader(data: ImageData, batch_size: int = 128, *, shuffle: bool = True, seed: int = 0, **settings: Any) -> Any:
    """Returns a `DataLoader` of (images [B, C, H, W] float in [0, 1], labels [B] int64), poison in place.

    Args:
        data: Clean, or ``poison.apply(data)``.
        batch_size: Images in a batch.
        shuffle: Whether each pass has an order of its own.
        seed: Of these orders.
        settings: Others of `DataLoader`, such as `num_workers` and `drop_last`.

    >>> data = ImageData(
    ...     torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), ("cat", "dog")
    ... )
    >>> [images.shape for images, labels in to_loader(data, 3)]
    [torch.Size([3, 1, 8, 8]), torch.Size([1, 1, 8, 8])]
    """
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TrainingImages(data), batch_size, shuffle=shuffle, generator=generator, **settings)


def from_loader(loader: Any, classes: Sequence[str] | None = None, *, size: int | None = None) -> ImageData:
    """Reads the data set behind a `DataLoader`, in its own order: row 0 is its item 0, however the loader shuffles.

    Args:
        loader: Over a map-style data set of (image, label); images as `ImageData.from_dataset` takes them.
        classes: Names of the classes; None: the data set's own.
        size: Resizes to size x size.

    Raises:
        TypeError: No loader, or one over a stream.
        ValueError: A loader that draws a part of its data or some twice, or whose `collate_fn` changes items; and what
            `ImageData.from_dataset` refuses, such as images that come out differently each time.

    >>> images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    >>> dataset = torch.utils.data.TensorDataset(images, labels)
    >>> from_loader(DataLoader(dataset, 2, shuffle=True)).labels.tolist()
    [0, 1, 0, 1]
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"loader is a {type(loader).__name__}; give a torch DataLoader, or its data set to from_dataset"
        )
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    )
    if not whole and not isinstance(loader.dataset, torch.utils.data.IterableDataset):
        raise ValueError(
            f"the loader draws with {type(sampler).__name__}, which may leave items out or repeat them; make a Subset "
            "of the data set and give that to ImageData.from_dataset"
        )
    if loader.collate_fn is not default_collate and loader.batch_size is not None:
        raise ValueError(
            "the loader has a collate_fn of its own, which may change what its data set returns; give the data set "
            "itself to ImageData.from_dataset, and say what changes batches as a transform of the recipe"
        )
    return read_dataset(loader.dataset, classes, size=size)


# --- datasets --------------------------------------------------------------------------------------------------------


def to_hugging_face(data: ImageData) -> Any:
    """Returns the visible images as a `datasets.Dataset` in memory: `image` (PNG, every pixel kept) and `label`.

    Raises:
        MissingExtra: `datasets` cannot be imported.
        ValueError: Images of another number of channels than 1 and 3.

    >>> from mithridate import Digits
    >>> train, _ = Digits(train=100).load()
    >>> to_hugging_face(train).column_names
    ['image', 'label']
    """
    datasets = extra("datasets", "hub", "to_hugging_face")
    if data.shape[0] not in (1, 3):
        raise ValueError(f"the images have {data.shape[0]} channels; those of `datasets` have 1 or 3")
    pictures = []
    for rows in data.pieces():
        pixels = data.pixels(rows).cpu().permute(0, 2, 3, 1).numpy()
        pictures += [
            Image.fromarray(one[:, :, 0] if one.shape[2] == 1 else np.ascontiguousarray(one)) for one in pixels
        ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(data.classes))})
    labels = data.labels_of(data.ids).cpu().tolist()
    return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)


def from_hugging_face(
    dataset: Any, *, image: str | None = None, label: str | None = None, size: int | None = None
) -> ImageData:
    """Reads a `datasets.Dataset` in memory or memory-mapped, as ``hub:OWNER/NAME`` reads one of the hub.

    Args:
        dataset: One split.
        image: Its column of images; None: found by its usual names or its kind.
        label: Its column of labels; None: likewise.
        size: Resizes to size x size.

    Raises:
        ValueError: No such column, labels that are no classes, damaged images, differing sizes without `size`.

    >>> from mithridate import Digits
    >>> train, _ = Digits(train=100).load()
    >>> len(from_hugging_face(to_hugging_face(train)))
    100
    """
    listing = list_dataset(dataset, type(dataset).__name__, image, label)
    return listing.load(np.arange(len(listing.labels)), size)
