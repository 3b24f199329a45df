"""Models and data in the hands of other libraries, and back."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from mithridate.core import adapters
from mithridate.core.data import ImageData
from mithridate.core.extras import MissingExtra
from mithridate.core.learners import TrainingImages
from tests.core.training_cases import quick


def some(channels: int = 3, count: int = 12) -> ImageData:
    images = torch.randint(0, 256, (count, channels, 8, 8), generator=torch.Generator().manual_seed(0))
    return ImageData(images.to(torch.uint8), torch.arange(count) % 3, ("ant", "bee", "cat"))


def poisoned(data: ImageData) -> ImageData:
    return data.drop([5]).replace([2], torch.full((1, *data.shape), 9, dtype=torch.uint8), torch.tensor([0]))


def network() -> nn.Module:
    return quick(model="mlp:width=8", epochs=1).fit([some()], [0]).models[0]


def logits(model: nn.Module, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(images).numpy()


# --- models ----------------------------------------------------------------------------------------------------------


def test_art_sees_the_same_model() -> None:
    pytest.importorskip("art", reason="the Adversarial Robustness Toolbox is not installed (extra judges)")
    model, data = network(), some()
    images = data.floats(data.ids)
    classifier = adapters.art_classifier(model, data.shape, 3)
    assert np.allclose(classifier.predict(images.numpy()), logits(model, images), atol=1e-5)
    leaf = images.clone().requires_grad_()
    nn.functional.cross_entropy(model(leaf), data.labels, reduction="sum").backward()
    found = classifier.loss_gradient(images.numpy(), nn.functional.one_hot(data.labels, 3).numpy().astype(np.float32))
    assert np.allclose(found, leaf.grad.numpy(), atol=1e-4) or np.allclose(found * 12, leaf.grad.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="expected logits"):
        adapters.art_classifier(model, data.shape, 4)


def test_foolbox_sees_the_same_model() -> None:
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed (extra judges)")
    model, data = network(), some()
    images = data.floats(data.ids)
    wrapped = adapters.foolbox_model(model)
    assert np.allclose(wrapped(images).detach().numpy(), logits(model, images), atol=1e-5)
    attack = foolbox.attacks.LinfFastGradientAttack()
    _, moved, _ = attack(wrapped, images, data.labels, epsilons=8 / 255)
    assert 0 < float((moved - images).abs().max()) <= 8 / 255 + 1e-6


def test_auto_attack_gets_a_deterministic_model() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(192, 3)).train()
    forward, images = adapters.auto_attack_model(model), some().floats(torch.arange(4)).requires_grad_()
    assert torch.equal(forward(images), forward(images))
    forward(images).sum().backward()
    assert images.grad is not None
    assert model[2].weight.grad is None


def test_without_the_libraries_the_message_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['art'] = sys.modules['foolbox'] = None\n"
        "from mithridate.core import adapters\nfrom torch import nn\n"
        "for call in (lambda: adapters.art_classifier(nn.Flatten(), (1, 2, 2), 4),"
        " lambda: adapters.foolbox_model(nn.Flatten())):\n"
        "    try:\n        call()\n    except ImportError as error:\n        print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("MissingExtra") == 2
    assert done.stdout.count("pip install 'mithridate[judges]'") == 2
    assert issubclass(MissingExtra, ImportError)


# --- loaders ---------------------------------------------------------------------------------------------------------


def test_a_loader_gives_every_visible_image_once_with_poison_in_place() -> None:
    data = poisoned(some())
    found = {}
    for images, labels in adapters.to_loader(data, 4, seed=3):
        for image, label in zip(images, labels.tolist(), strict=True):
            found[image.numpy().tobytes()] = label
    expected = dict(
        zip(
            (one.numpy().tobytes() for one in data.floats(data.ids).contiguous()),
            data.labels_of(data.ids).tolist(),
            strict=True,
        )
    )
    assert found == expected
    assert len(found) == 11


def test_shuffling_follows_the_seed() -> None:
    def order(**settings: object) -> list[int]:
        return [label for _, labels in adapters.to_loader(some(count=24), 5, **settings) for label in labels.tolist()]  # type: ignore[arg-type]

    assert order(shuffle=False) == some(count=24).labels.tolist()
    assert order(seed=1) == order(seed=1) != order(seed=2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_there_and_back_by_a_loader(shuffle: bool) -> None:
    data = poisoned(some())
    back = adapters.from_loader(adapters.to_loader(data, 4, shuffle=shuffle))
    assert torch.equal(back.images, data.pixels(data.ids))
    assert back.labels.tolist() == data.labels_of(data.ids).tolist()
    assert back.classes == data.classes


class Stream(IterableDataset):
    """No length, no positions."""

    def __iter__(self):
        yield torch.zeros(3, 8, 8), 0


class Flickering(Dataset):
    """Other pixels each time."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(3, 8, 8), index % 3


def test_loaders_that_do_not_show_their_data_as_they_are_are_refused() -> None:
    whole = TrainingImages(some())
    for sampler in (
        SubsetRandomSampler([1, 2]),
        WeightedRandomSampler([1.0] * 12, 12),
        RandomSampler(whole, replacement=True),
        RandomSampler(whole, num_samples=5),
    ):
        with pytest.raises(ValueError, match="may leave items out or repeat them; make a Subset"):
            adapters.from_loader(DataLoader(whole, 4, sampler=sampler))
    with pytest.raises(ValueError, match="collate_fn of its own"):
        adapters.from_loader(DataLoader(whole, 4, collate_fn=lambda items: items))
    with pytest.raises(TypeError, match="loader is a list"):
        adapters.from_loader([1])
    with pytest.raises(TypeError):
        adapters.from_loader(DataLoader(Stream(), 4))
    with pytest.raises(ValueError, match="item"):
        adapters.from_loader(DataLoader(Flickering(), 4))


def test_a_subset_and_unbatched_loaders_are_read() -> None:
    whole = TrainingImages(some())
    assert adapters.from_loader(
        DataLoader(Subset(whole, [7, 3]), 2), classes=("ant", "bee", "cat")
    ).labels.tolist() == [1, 0]
    dataset = TensorDataset(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
    assert adapters.from_loader(DataLoader(dataset, batch_size=None)).labels.tolist() == [0, 1, 0, 1]


# --- datasets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_there_and_back_by_datasets(channels: int) -> None:
    pytest.importorskip("datasets", reason="Hugging Face datasets is not installed (extra hub)")
    data = poisoned(some(channels))
    dataset = adapters.to_hugging_face(data)
    assert dataset.features["label"].names == list(data.classes)
    back = adapters.from_hugging_face(dataset)
    assert torch.equal(back.images, data.pixels(data.ids))
    assert back.labels.tolist() == data.labels_of(data.ids).tolist()
    assert back.classes == data.classes
    renamed = dataset.rename_columns({"image": "x", "label": "y"}).shuffle(seed=0)
    assert len(adapters.from_hugging_face(renamed, image="x", label="y")) == 11
    with pytest.raises(ValueError, match="no image column"):
        adapters.from_hugging_face(dataset.remove_columns("image"))


def test_images_that_no_file_holds_are_refused() -> None:
    pytest.importorskip("datasets", reason="Hugging Face datasets is not installed (extra hub)")
    with pytest.raises(ValueError, match="2 channels"):
        adapters.to_hugging_face(some(2))
