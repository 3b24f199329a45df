"""What people type after --workers, and what is no place to run."""

from __future__ import annotations

import builtins

import pytest

from mithridate.core.engines import Workers, described, engine, is_local, slots
from mithridate.core.ray_workers import Ray, ray_workers
from mithridate.core.workers import Processes, processes

MEANT: dict[Workers, object] = {
    1: builtins.map,
    "1": builtins.map,
    "local": builtins.map,
    " local ": builtins.map,
    3: Processes(3),
    "3": Processes(3),
    "processes:3": Processes(3),
    "processes:1": Processes(1),
    "ray": Ray(),
    "ray:auto": Ray("auto"),
    "ray:head:6379": Ray("head:6379"),
    "ray:ray://head:10001": Ray("ray://head:10001"),
}


@pytest.mark.parametrize("asked", MEANT)
def test_what_is_asked_is_meant(asked: Workers) -> None:
    assert engine(asked) == MEANT[asked]


def test_a_map_stays_what_it_is() -> None:
    own = ray_workers(gpus=0.5)
    assert engine(own, device="cuda") is own


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("proceses:4", "did you mean processes:N"),
        ("rey", "did you mean ray"),
        ("ray:", "no place to run"),
        ("", "no place to run"),
        ("two", "known: local, processes:N, ray, ray:ADDRESS, or a number"),
        ("processes", "does not say how many; write processes:4"),
        ("processes:many", "does not say how many"),
        ("processes:", "does not say how many"),
        ("0", "workers is 0; at least 1"),
        ("-2", "workers is -2; at least 1"),
        ("processes:0", "workers is 0; at least 1"),
        ("local:2", "no place to run"),
    ],
)
def test_what_is_no_place_to_run(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        engine(text)


def test_a_gpu_for_each_task_on_ray_unless_told_otherwise() -> None:
    assert [engine("ray", device=device) for device in ("cpu", "mps", "cuda")] == [Ray(), Ray(), Ray(gpus=1)]
    assert engine("ray", device="cuda", gpus=0.25) == Ray(gpus=0.25)
    assert engine("ray", gpus=0) == Ray()
    with pytest.raises(ValueError, match="give it together with --workers ray"):
        engine(2, gpus=0.5)
    with pytest.raises(ValueError, match=r"a fraction of one GPU, like 0\.25, or whole ones"):
        engine("ray", gpus=1.5)
    with pytest.raises(ValueError, match="write --device cuda"):
        engine("ray", device="cuda:1")


@pytest.mark.parametrize("settings", [{"gpus": -1}, {"threads": 0}, {"retries": -1}])
def test_numbers_that_no_task_can_have(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"is -?[01]"):
        ray_workers(**settings)


def test_how_many_at_once_and_in_words() -> None:
    assert (slots(processes(3)), slots(map), slots(lambda function, items: [])) == (3, 1, 1)
    assert (described(processes(3)), described(map), described(Ray())) == ("3 workers", "1 worker", "Ray")
    assert [is_local(engine(asked)) for asked in ("local", 1, "processes:1", "ray")] == [True, True, False, False]
