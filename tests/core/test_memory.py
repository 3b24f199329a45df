"""Work in pieces: sizes halve when memory runs out, everything else passes through."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

from mithridate.core.memory import in_chunks, out_of_memory, shrinking

CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory")


def fits_up_to(largest: int, error: BaseException, tried: list[int]) -> Callable[[int], int]:
    def work(size: int) -> int:
        tried.append(size)
        if size > largest:
            raise error
        return size

    return work


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), CPU])
def test_sizes_halve_until_the_work_fits_and_each_time_it_says_so(error: BaseException) -> None:
    tried: list[int] = []
    with pytest.warns(UserWarning, match="out of memory") as said:
        assert shrinking(fits_up_to(3, error, tried), 20) == 2
    assert tried == [20, 10, 5, 2]
    assert [str(warning.message).split()[-1] for warning in said] == ["10", "5", "2"]


def test_work_that_fits_is_done_once_without_a_word() -> None:
    tried: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shrinking(fits_up_to(9, MemoryError(), tried), 9) == 9
    assert tried == [9]


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), ValueError("no"), KeyError("no")])
def test_other_errors_pass_through_at_once(error: BaseException) -> None:
    tried: list[int] = []
    with pytest.raises(type(error), match="no") as caught:
        shrinking(fits_up_to(0, error, tried), 8)
    assert caught.value is error
    assert tried == [8]


def test_a_single_item_that_does_not_fit_is_an_error() -> None:
    tried: list[int] = []
    with pytest.warns(UserWarning, match="pieces of 1"), pytest.raises(torch.OutOfMemoryError):
        shrinking(fits_up_to(0, torch.OutOfMemoryError("full"), tried), 2)
    assert tried == [2, 1]


def test_what_counts_as_out_of_memory() -> None:
    assert all(out_of_memory(error) for error in (torch.OutOfMemoryError(), MemoryError(), CPU))
    assert not any(out_of_memory(error) for error in (RuntimeError("CUDA error"), KeyboardInterrupt(), OSError()))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("dim", [0, 1])
def test_chunks_change_nothing(size: int, dim: int) -> None:
    items = torch.arange(14.0).view(7, 2)
    function = (lambda part: part.square()) if dim == 0 else (lambda part: part.square().T)
    assert torch.equal(in_chunks(function, items, size, dim), function(items))


def test_no_items_are_no_error() -> None:
    assert in_chunks(lambda part: part * 2, torch.zeros(0, 3), 4).shape == (0, 3)


def test_chunks_shrink_as_a_whole() -> None:
    def function(part: torch.Tensor) -> torch.Tensor:
        if len(part) > 2:
            raise torch.OutOfMemoryError
        return part + 1

    with pytest.warns(UserWarning, match="out of memory"):
        assert in_chunks(function, torch.arange(5), 8).tolist() == [1, 2, 3, 4, 5]
