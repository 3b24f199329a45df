"""The interfaces of a training step: abstract, and complete families."""

from __future__ import annotations

import pytest
import torch

from mithridate.core.batch import Batch, BatchTransform, GradientRule, RowRule, Sampler
from mithridate.core.schema import choices


@pytest.mark.parametrize("family", [BatchTransform, GradientRule, RowRule, Sampler])
def test_a_family_is_abstract(family: type) -> None:
    with pytest.raises(TypeError, match="abstract"):
        family()


@pytest.mark.parametrize(
    ("family", "members"),
    [(BatchTransform, {"flip", "shift", "mixup"}), (GradientRule, {"mean"}), (Sampler, {"shuffled"})],
)
def test_families_know_their_members(family: type, members: set[str]) -> None:
    assert members <= set(choices(family))


def test_only_mixing_transforms_say_that_they_mix() -> None:
    mixing = {name: cls.mixes_rows for name, cls in choices(BatchTransform).items()}
    assert mixing["mixup"]
    assert not mixing["flip"]
    assert not mixing["shift"]


def test_a_batch_is_a_value() -> None:
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.ones(1, 1), torch.tensor([3]), 0.5)
    images, targets, rows, progress = batch
    assert images is batch.images
    assert targets is batch.targets
    assert rows.tolist() == [3]
    assert progress == 0.5
    with pytest.raises(AttributeError):
        batch.progress = 1.0  # type: ignore[misc]
