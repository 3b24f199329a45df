"""A real Ray cluster of this machine: the signature of map, deaths, cancelling, shared pixels, what does not fit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from mithridate.core import ray_workers as module
from mithridate.core.data import ImageData
from mithridate.core.ray_workers import _reach, held, ray_workers
from mithridate.core.sources import Arrays
from mithridate.core.workers import WorkerDied
from mithridate.experiments.study import StudyErrors, load_errors, run_study
from tests.experiments.fakes import Brighten, awkward, killed_once, noise_trial, square, trial

ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
pytest.importorskip("ray.exceptions", reason="Ray is not installed (extra ray)")
ROOT = Path(__file__).resolve().parents[2]
LONG = 120.0
"""Seconds after which a test that waits for another process gives up."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs, and a GPU that only the bookkeeping knows of."""
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    module._listen(False)
    yield
    ray.shutdown()


def wait_for(path: Path) -> str:
    end = time.monotonic() + LONG
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)
    return path.read_text()


def gone(process: int) -> bool:
    """Whether a process has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


# --- tasks -----------------------------------------------------------------------------------------------------------


def writes_who_it_is_and_waits(path: Path) -> str:
    """The first try waits until it is killed, the second is done."""
    if path.exists():
        return "second try"
    path.write_text(str(os.getpid()))
    time.sleep(LONG)
    return "first try"


def waits_for_its_turn(task: tuple[int, Path]) -> int:
    number, path = task
    wait_for(path)
    return number


def meets_another(task: tuple[str, str, Path]) -> str:
    """Ends only where two run at the same time; returns the GPUs that it sees."""
    own, other, folder = task
    (folder / own).write_text("here")
    wait_for(folder / other)
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def looks(source: Arrays) -> tuple[str, str]:
    data = ImageData(source.train.images, source.train.labels, source.train.classes)
    return data.fingerprint(), source.test.fingerprint()


class Sent:
    """A task that knows how often it was pickled."""

    times: ClassVar[list[int]] = []

    def __init__(self, number: int, path: Path) -> None:
        self.number, self.path = number, path

    def __reduce__(self) -> tuple[Any, ...]:
        Sent.times.append(self.number)
        return _as_task, (self.number, self.path)


def _as_task(number: int, path: Path) -> tuple[int, Path]:
    return number, path


# --- no cluster ------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return line.getsockname()[1]


def test_an_address_where_nothing_listens_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"no Ray answers at 127\.0\.0\.1:\d+ .*start one with `ray start --head`"):
        next(ray_workers(f"127.0.0.1:{free_port()}")(square, [1]))
    assert not ray.is_initialized()


def test_something_else_that_listens_there_is_not_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            line, _ = server.accept()
            with line:
                line.recv(100)
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ValueError, match="what listens there is not Ray"):
            _reach(f"127.0.0.1:{server.getsockname()[1]}", "")
        thread.join()


@pytest.mark.parametrize("text", ["nonsense", "host:", ":6379", "host:port", "ray://"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is no address of Ray; write host:port"):
        next(ray_workers(text)(square, [1]))


def test_no_cluster_on_this_machine_and_an_address_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_runs(**_: Any) -> None:
        raise ConnectionError("Could not find any\nrunning Ray instance")

    monkeypatch.setattr(ray, "init", none_runs)  # on the machine of the test one may run
    with pytest.raises(ValueError, match=r"no connection to Ray at auto .Could not find any running .*start one"):
        next(ray_workers("auto")(square, [1]))
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(ValueError, match="no Ray answers at 127"):
        ray_workers().slots()


def test_the_command_line_says_it_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mithridate.cli import main

    where = f"ray:127.0.0.1:{free_port()}"
    arguments = ["study", "tests.experiments.fakes:definition", "--workers", where, "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    try:
        assert main(arguments) == 2
    finally:
        torch.set_num_threads(threads)
    error = capsys.readouterr().err
    assert "error: no Ray answers at 127.0.0.1" in error
    assert "Traceback" not in error


def test_nothing_to_do_starts_nothing() -> None:
    assert list(ray_workers()(square, [])) == []
    with pytest.raises(ValueError, match="item 0 cannot be sent"):
        ray_workers()(square, [lambda: 0])
    assert not ray.is_initialized()


# --- a cluster -------------------------------------------------------------------------------------------------------


def test_results_come_in_order_from_one_thread_each(cluster: None) -> None:
    with held():
        assert list(ray_workers()(square, range(20))) == [n * n for n in range(20)]
    assert next(ray_workers()(awkward, [0]))[0] == 1
    assert ray.is_initialized()


def test_deaths_and_errors_leave_the_others_alone(cluster: None) -> None:
    found = list(ray_workers(retries=1)(awkward, [0, 1, 2, 3, 4]))
    assert found[0] == found[4]
    assert isinstance(found[1], WorkerDied)
    assert "the Ray worker died (WorkerCrashedError), 2 times in a row" in str(found[1])
    assert isinstance(found[2], ValueError)
    assert str(found[2]) == "two is wrong"
    assert isinstance(found[3], RuntimeError)
    assert "Unpicklable: 1 and 2" in str(found[3])


def test_a_worker_killed_in_the_middle_of_a_task_is_replaced(tmp_path: Path, cluster: None) -> None:
    path = tmp_path / "process"
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(ray_workers()(writes_who_it_is_and_waits, [path])))
    thread.start()
    os.kill(int(wait_for(path)), signal.SIGKILL)
    thread.join(LONG)
    assert found == ["second try"]
    assert list(ray_workers()(killed_once, [tmp_path / "a"])) == ["a"]


def test_stopping_early_ends_what_is_under_way(tmp_path: Path, cluster: None) -> None:
    tasks = [(0, tmp_path / "open"), (1, tmp_path / "closed")]
    (tmp_path / "open").write_text("now")
    results = ray_workers()(waits_or_says, tasks)
    assert next(results) == 0
    process = int(wait_for(tmp_path / "1"))
    results.close()
    end = time.monotonic() + LONG
    while not gone(process):
        assert time.monotonic() < end
        time.sleep(0.05)


def waits_or_says(task: tuple[int, Path]) -> int:
    (task[1].parent / str(task[0])).write_text(str(os.getpid()))
    return waits_for_its_turn(task)


def test_at_most_two_tasks_per_slot_are_under_way(tmp_path: Path, cluster: None) -> None:
    gate = tmp_path / "gate"
    results = ray_workers()(waits_for_its_turn, [Sent(n, gate) for n in range(12)])
    Sent.times.clear()  # they were tried for whether they can be sent
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(results))
    thread.start()
    while len(Sent.times) < 4:
        time.sleep(0.02)
    time.sleep(0.5)
    assert Sent.times == [0, 1, 2, 3]
    gate.write_text("open")
    thread.join(LONG)
    assert found == list(range(12))
    assert Sent.times == list(range(12))


def test_pixels_are_put_once_and_read_where_they_are(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sets = [ImageData(images ^ mask, torch.arange(200) % 2, ("a", "b")) for mask in (0, 255)]
    put: list[int] = []
    real = ray.put
    monkeypatch.setattr(ray, "put", lambda value: put.append(getattr(value, "nbytes", 0)) or real(value))
    names = tuple(data.fingerprint() for data in sets)
    assert list(ray_workers()(looks, [Arrays(*sets)] * 6)) == [names] * 6
    assert sorted(size for size in put if size) == [images.nbytes, images.nbytes]


def test_two_tasks_share_a_gpu(tmp_path: Path, cluster: None) -> None:
    """As far as Ray's bookkeeping goes: there is no GPU."""
    half = ray_workers(gpus=0.5)
    assert (half.slots(), ray_workers(gpus=1).slots(), ray_workers().slots()) == (2, 1, 2)
    assert list(half(meets_another, [("a", "b", tmp_path), ("b", "a", tmp_path)])) == ["0", "0"]
    with pytest.raises(ValueError, match="asks for 2 GPUs, and the Ray cluster has 1; ask for less"):
        next(ray_workers(gpus=2)(square, [1]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"versions": {"torch": "1.0"}}, r"has torch 2\.\S+ \(here 1\.0\); results would .*install the same versions"),
        ({"versions": {"mithridate": "9"}}, r"has mithridate \S+ \(here 9\)"),
        ({"folder": "/no/such/folder"}, "does not see the folder /no/such/folder .*start from a folder that all"),
    ],
)
def test_a_worker_that_does_not_fit_is_an_error_before_any_trial(
    change: dict[str, Any], words: str, tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = module._setup(1) | change
    monkeypatch.setattr(module, "_setup", lambda threads: setup)
    trials = [trial(attack=Brighten(fails="never run"))]
    with pytest.raises(ValueError, match=words):
        run_study(trials, tmp_path, map=ray_workers(), progress=False)
    assert not (tmp_path / "trials").exists()


def test_a_study_gives_the_same_results_as_here(tmp_path: Path, cluster: None) -> None:
    trials = [
        noise_trial(0),
        trial(attack=Brighten(fails="no luck")),
        trial(attack=Brighten(dies=True)),
        noise_trial(1),
    ]
    with pytest.raises(StudyErrors, match="2 of 4 trials failed; 2 are finished") as caught:
        run_study(trials, tmp_path / "a", map=ray_workers(retries=0), progress=False)
    assert sorted(error["type"] for error in caught.value.errors) == ["RuntimeError", "WorkerDied"]
    assert len(load_errors(tmp_path / "a")) == 2
    there = run_study([trials[0], trials[3]], tmp_path / "a", progress=False)
    here = run_study([trials[0], trials[3]], tmp_path / "b", progress=False)
    names = ("trial", "outcome", "case", "data", "poison", "defense", "threads")
    assert [{name: result[name] for name in names} for _, result in there] == [
        {name: result[name] for name in names} for _, result in here
    ]


# --- clusters of their own -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_script_starts_a_cluster_once_and_ends_it_quietly(tmp_path: Path) -> None:
    """Functions of the script itself are sent as code; a death says nothing on standard output."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os
        import ray
        from mithridate.core.ray_workers import held, ray_workers

        HERE = os.getcwd()

        def dies(number):
            if number:
                os.kill(os.getpid(), 9)
            return number, os.getcwd() == HERE

        with held():
            first = list(ray_workers(retries=0)(dies, [0, 1]))
            session = ray.get_runtime_context().gcs_address
            second = list(ray_workers()(dies, [0]))
            assert session == ray.get_runtime_context().gcs_address
        assert not ray.is_initialized()
        print(first[0], type(first[1]).__name__, second)
    """)
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(0, True) WorkerDied [(0, True)]\n"
