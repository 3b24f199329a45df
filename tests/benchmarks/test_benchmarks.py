"""The benchmarks run in small form, their hand-written references are right, and their arithmetic is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import crafting, reference, startup
from benchmarks.__main__ import main
from benchmarks.measure import Setup, Timing, interleaved, speedup
from mithridate.core.models import build
from mithridate.core.networks import ConvNorm

SMALL = Setup(small=True, models=("convnet",))


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """One image [C, H, W] moved by whole pixels, pixel by pixel."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                result[:, y, x] = image[:, y + down, x + right]
    return result


def test_both_augmentations_mirror_and_move_by_up_to_four_pixels() -> None:
    images, _ = reference.synthetic(6, classes=2, side=10)
    gather = reference._one_gather(images)
    reaches = range(-reference.REACH, reference.REACH + 1)
    for index, image in enumerate(images):
        allowed = {
            tuple(moved(version, down, right).flatten().tolist())
            for version in (image, image.flip(2))
            for down in reaches
            for right in reaches
        }
        rng, rows = torch.Generator().manual_seed(index), torch.tensor([index] * 60)
        for drawn in (gather(rows, rng), reference.augment_plain(images[rows], rng)):
            seen = {tuple(one.flatten().tolist()) for one in drawn}
            assert seen <= allowed
            assert len(seen) > 30


@pytest.mark.parametrize("name", ["convnet:width=4", "resnet18:width=4"])
def test_ordinary_layers_compute_the_same_function(name: str) -> None:
    network = build(name, 4, (3, 16, 16), seed=0).eval()
    ordinary, images = reference.ordinary(network), torch.rand(3, 3, 16, 16)
    assert not any(isinstance(part, ConvNorm) for part in ordinary.modules())
    assert any(isinstance(part, ConvNorm) for part in network.modules())
    torch.testing.assert_close(ordinary(images), network(images))


def test_training_by_hand_learns() -> None:
    images, labels = reference.synthetic(120, classes=3, side=16)
    school = reference.Schooling(epochs=4, batch_size=20)
    for train in (reference.train_plain, lambda *given: reference.train_best(*given, bf16=False)):
        assert train(build("convnet:width=8", 3, (3, 16, 16), seed=0), images, labels, school) < 0.6


def test_matching_by_hand_lowers_the_loss_inside_the_ball() -> None:
    network = build("convnet:width=8", 3, (3, 16, 16), seed=0).eval()
    images, labels = reference.synthetic(13, classes=3, side=16)
    base, target = images[1:].float() / 255, images[:1].float() / 255
    results = []
    for brew in (reference.brew_plain, reference.brew_careful):
        for steps in (1, 40):
            brewing = reference.Brewing(steps=steps)
            poison, loss = brew(network, base, labels[1:], target, torch.tensor([2]), brewing)
            assert (poison - base).abs().max() <= brewing.eps + 1e-6
            assert poison.min() >= 0
            assert poison.max() <= 1
            results.append(loss)
    assert results[:2] == pytest.approx(results[2:], abs=0.02)
    assert results[1] < results[0] - 0.05


def test_mismatch_is_one_minus_the_cosine_of_the_long_vectors() -> None:
    a, b = [torch.rand(3), torch.rand(2, 2)], [torch.rand(3), torch.rand(2, 2)]
    long = [torch.cat([part.flatten() for part in parts]) for parts in (a, b)]
    expected = 1 - functional.cosine_similarity(long[0], long[1], dim=0)
    torch.testing.assert_close(reference._mismatch(tuple(a), tuple(b)), expected)


def test_arms_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, "cpu")
    assert calls == ["a", "b"] * 3
    assert [len(times) for times in found.values()] == [2, 2]


def test_speedup_compares_within_rounds() -> None:
    slow, fast = [Timing(2, 2), Timing(8, 8), Timing(9, 9)], [Timing(1, 1), Timing(2, 2), Timing(3, 3)]
    claim = speedup("case", slow, fast, "cpu", 3.0)
    assert (claim.low, claim.value, claim.high, claim.holds) == (2, 3, 4, True)
    assert not speedup("case", slow, fast, "wall", 3.1).holds


def test_training_runs_small_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["training", "--small", "--models", "convnet", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "training-cpu.json").read_text(encoding="utf-8"))
    assert [row["arm"] for row in report["rows"]] == ["mithridate", "best by hand", "plain fp32 NCHW"]
    assert {"cpu", "cores", "threads", "torch", "device"} <= set(report["environment"])
    assert "small form" in capsys.readouterr().out


def test_crafting_arms_run_small() -> None:
    losses: dict[str, float] = {}
    for work in crafting._arms(SMALL, "convnet", 4, 2, losses).values():
        work()
    assert set(losses) == set(crafting.ARMS)
    assert all(0 <= loss <= 2 for loss in losses.values())


@pytest.mark.skipif(not crafting.CLEAR.exists(), reason="only Linux can forget earlier peaks")
def test_peak_memory_counts_what_a_step_allocates() -> None:
    before = crafting._reset_peak("cpu")
    block = torch.ones(16 * 2**18)
    del block
    assert crafting._peak("cpu") - before >= 15


@pytest.mark.slow
def test_crafting_and_startup_run_small(tmp_path: Path) -> None:
    assert main(["crafting", "startup", "--small", "--models", "convnet", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crafting-cpu.json", "startup-cpu.json"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_said_plainly() -> None:
    with pytest.raises(SystemExit, match="no CUDA device"):
        main(["--device", "cuda", "--small"])


@pytest.mark.gpu
def test_everything_runs_small_on_a_gpu(tmp_path: Path) -> None:
    assert main(["training", "crafting", "--device", "cuda", "--small", "--out", str(tmp_path)]) == 0


def test_extra_seconds_are_differences_within_rounds() -> None:
    found = {"import torch": [Timing(1, 1.0), Timing(1, 2.0)], "ours": [Timing(1, 1.2), Timing(1, 2.1)]}
    claim = startup._beyond("ours", found, "ours", 0.1)
    assert claim.value == pytest.approx(0.15)
    assert not claim.holds
