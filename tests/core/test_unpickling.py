"""What strangers' pickles and torch files may hold comes out as Python, numpy, Pillow and torch put it in."""

from __future__ import annotations

import io
import math
import pickle
import struct
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from mithridate.core.stand_ins import EVERYTHING, NUMPY, PICTURES, TENSORS, Allowed, Picture
from mithridate.core.unpickling import Limits, load_pickle, load_torch

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)
protocols = st.sampled_from(PROTOCOLS)


def loaded(content: bytes, allowed: Allowed = EVERYTHING, **limits: int) -> Any:
    """What is read of a file with these bytes."""
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "a.pickle"
        file.write_bytes(content)
        return load_pickle(file, allowed, limits=Limits(**limits))


def saved(value: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **how)
    return file.getvalue()


def torch_loaded(content: bytes, **limits: int) -> Any:
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "a.pt"
        file.write_bytes(content)
        return load_torch(file, EVERYTHING, limits=Limits(**limits))


def same(ours: Any, theirs: Any) -> bool:
    """Whether two structures have equal types and values; not a number equals itself."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, float):
        return struct.pack("<d", ours) == struct.pack("<d", theirs) or math.isnan(ours) == math.isnan(theirs) is True
    return ours == theirs


WHOLE = st.integers(-(2**63), 2**63 - 1)
ATOMS = st.none() | st.booleans() | WHOLE | st.floats() | st.text() | st.binary(max_size=300)
KEYS = st.none() | st.booleans() | WHOLE | st.text(max_size=9)
PLAIN = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=5) | st.lists(inner, max_size=5).map(tuple) | st.dictionaries(KEYS, inner, max_size=5)
    ),
    max_leaves=25,
)


# --- Python ----------------------------------------------------------------------------------------------------------


@given(PLAIN, protocols)
@settings(max_examples=150)
def test_plain_data_come_back(value: Any, protocol: int) -> None:
    assert same(loaded(pickle.dumps(value, protocol)), value)
    assert same(loaded(pickle._dumps(value, protocol)), value)  # type: ignore[attr-defined]  # as PyPy and old Python do


@every_protocol
def test_sizes_at_which_pickles_change_their_instructions(protocol: int) -> None:
    for size in (0, 1, 255, 256, 65535, 65536, 70000):
        value = ["é" * size, b"\xff" * size, list(range(size)), dict.fromkeys(range(size % 3000), "a")]
        assert same(loaded(pickle.dumps(value, protocol)), value)
    for number in (0, 255, 256, 65535, 65536, 2**31 - 1, 2**31, -1, -(2**31) - 1, 2**63 - 1, -(2**63)):
        assert same(loaded(pickle.dumps([number, float(number)], protocol)), [number, float(number)])


@every_protocol
def test_shared_parts_stay_shared(protocol: int) -> None:
    inner = [1, "a"]
    found = loaded(pickle.dumps([inner, (inner, inner)], protocol))
    assert found[0] is found[1][0] is found[1][1]


@every_protocol
def test_ordered_dictionaries_become_plain_ones(protocol: int) -> None:
    found = loaded(pickle.dumps(OrderedDict(b=[1], a=2), protocol))
    assert type(found) is dict
    assert list(found.items()) == [("b", [1]), ("a", 2)]


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_bytearrays_become_bytes_where_protocols_have_none(protocol: int) -> None:
    assert loaded(pickle.dumps([bytearray(b"\0\xff"), b"", b"\x80"], protocol)) == [b"\0\xff", b"", b"\x80"]


@pytest.mark.parametrize(
    "value",
    [{1, 2}, frozenset("a"), 1j, range(3), Ellipsis, int, Path("a"), 2**63, -(2**63) - 1, slice(3), {(1,): 2}, len],
    ids=repr,
)
@every_protocol
def test_other_types_are_refused(value: Any, protocol: int) -> None:
    with pytest.raises(ValueError, match=r"a\.pickle"):
        loaded(pickle.dumps(value, protocol))


# --- numpy -----------------------------------------------------------------------------------------------------------


def as_numpy_1(content: bytes) -> bytes:
    """The same pickle with the names that numpy had before 2.0."""
    count = content.count(b"numpy._core.")
    if content[:1] == b"\x80" and content[1] > 3:
        assert content[2:3] == b"\x95"
        (size,) = struct.unpack("<Q", content[3:11])
        content = content[:3] + struct.pack("<Q", size - count) + content[11:]
        for module in (b"multiarray", b"numeric"):
            new = b"numpy.core." + module
            content = content.replace(
                b"\x8c" + bytes([len(new) + 1]) + b"numpy._core." + module, b"\x8c" + bytes([len(new)]) + new
            )
        assert b"numpy._core." not in content
        return content
    return content.replace(b"numpy._core.", b"numpy.core.")


DTYPES = [
    f"{order}{kind}" for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8") for order in "<>"
]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    dtype = draw(st.sampled_from([*DTYPES, "?"]))
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 2 if dtype == "?" else 100, shape)
    array = np.asarray(values).astype(dtype)
    if draw(st.booleans()):
        array = np.asfortranarray(array)
    if draw(st.booleans()):
        array = array[::-1] if array.ndim else array
    return array.transpose(draw(st.permutations(range(array.ndim))))


@given(arrays(), protocols, st.booleans())
@settings(max_examples=120)
def test_arrays_come_back(array: np.ndarray, protocol: int, old: bool) -> None:
    content = pickle.dumps({"a": array}, protocol)
    found = loaded(as_numpy_1(content) if old else content, NUMPY)["a"]
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.shape == array.shape
    assert np.array_equal(found, array)


@given(st.sampled_from([*DTYPES, "?"]), st.integers(0, 1), protocols, st.booleans())
def test_numbers_of_numpy_become_pythons(dtype: str, value: int, protocol: int, old: bool) -> None:
    number = np.dtype(dtype).type(value)
    content = pickle.dumps([number], protocol)
    (found,) = loaded(as_numpy_1(content) if old else content, NUMPY)
    assert found == number
    assert type(found) is type(number.item())


class Own(np.ndarray):
    """A class that unpickling would import."""


@every_protocol
@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([1, "a"], object), "'O8'"),
        (np.array(["a"]), "'U1'"),
        (np.array([b"a"]), "'S1'"),
        (np.array([1j]), "'c16'"),
        (np.array(["2020"], "M8[D]"), "'M8'"),
        (np.zeros(2, [("a", "i4"), ("b", "f4")]), "'V8'"),
        (np.ma.masked_array([1, 2], [True, False]), "asks for 'numpy.ma"),
        (Own((2,)), "class of its own|asks for"),
    ],
    ids=["objects", "text", "bytes", "complex", "dates", "fields", "masked", "subclass"],
)
def test_other_arrays_are_refused(array: Any, said: str, protocol: int) -> None:
    with pytest.raises(ValueError, match=said):
        loaded(pickle.dumps(array, protocol), NUMPY)


# --- Pillow ----------------------------------------------------------------------------------------------------------


def picture_of(mode: str, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return image.quantize(7) if mode == "P" else image.convert(mode)


@given(st.sampled_from(["L", "RGB", "RGBA", "P"]), protocols, st.integers(0, 99))
@settings(max_examples=60)
def test_pictures_come_back(mode: str, protocol: int, seed: int) -> None:
    image = picture_of(mode, seed)
    (found, label) = loaded(pickle.dumps((image, 3), protocol), PICTURES)
    assert isinstance(found, Picture)
    assert (label, found.mode, found.size) == (3, mode, (5, 4))
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(found.tensor((3, 4, 5)).numpy(), expected)
    if mode == "L":
        assert np.array_equal(found.tensor((1, 4, 5)).numpy(), expected[:1])


@every_protocol
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pictures_that_were_files_come_back(kind: str, protocol: int) -> None:
    file = io.BytesIO()
    picture_of("RGB").save(file, kind)
    image = Image.open(file)
    found = loaded(pickle.dumps(image, protocol), PICTURES)
    assert np.array_equal(found.tensor((3, 4, 5)).numpy(), np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "CMYK", "I", "F", "LA", "HSV"])
def test_other_modes_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode '{mode}'"):
        loaded(pickle.dumps(picture_of(mode)))


# --- torch -----------------------------------------------------------------------------------------------------------

KINDS = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    made = torch.randint(0, 2, [n + 1 for n in shape], generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
    made = made.to(draw(st.sampled_from(KINDS)))
    for axis, size in enumerate(shape):  # a view, where a side is cut
        made = made.narrow(axis, draw(st.integers(0, 1)), size)
    return made.permute(draw(st.permutations(range(made.ndim))))


WAYS = [{}, {"_use_new_zipfile_serialization": False}]
both_ways = pytest.mark.parametrize("way", WAYS, ids=["zip", "legacy"])


@given(st.lists(tensors(), max_size=3), st.sampled_from([*WAYS, *({"pickle_protocol": n} for n in (3, 4, 5))]))
@settings(max_examples=100)
def test_tensors_come_back(made: list[torch.Tensor], way: dict[str, Any]) -> None:
    value = {"list": [*made, 3, "a"], "again": tuple(made)}
    found = torch_loaded(saved(value, **way))
    assert found["list"][len(made) :] == [3, "a"]
    for ours, theirs, again in zip(found["list"], made, found["again"], strict=False):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
        assert again.data_ptr() == ours.data_ptr()


@given(tensors(), protocols)
@settings(max_examples=60)
def test_tensors_of_plain_pickles_come_back(tensor: torch.Tensor, protocol: int) -> None:
    (found, _) = loaded(pickle.dumps((tensor, 1), protocol))
    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor)


@both_ways
def test_state_dicts_come_back(way: dict[str, bool]) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    state = net.state_dict()
    found = torch_loaded(saved({"model": state, "named": dict(net.named_parameters())}, **way))
    assert list(found["model"]) == list(state)
    assert all(torch.equal(found["model"][name], value) for name, value in state.items())
    assert type(found["named"]["0.weight"]) is torch.Tensor
    assert torch.equal(found["named"]["0.weight"], net[0].weight)


@both_ways
def test_everything_at_once_in_torch_files(way: dict[str, bool]) -> None:
    value = [picture_of("RGB"), np.arange(3), np.float32(2), torch.ones(2), {"a": b"\xff"}]
    picture, array, number, tensor, rest = torch_loaded(saved(value, **way))
    assert picture.size == (5, 4)
    assert array.tolist() == [0, 1, 2]
    assert (number, rest) == (2.0, {"a": b"\xff"})
    assert tensor.tolist() == [1, 1]


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, 2).to_sparse(),
        torch.ones(1).expand(9),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
        torch.nn.Linear(2, 2),
        torch.float32,
        torch.Size([1]),
        torch.device("cpu"),
    ],
    ids=["sparse", "expanded", "complex", "meta", "module", "dtype", "size", "device"],
)
@both_ways
def test_other_torch_objects_are_refused(value: Any, way: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match=r"a\.pt"):
        torch_loaded(saved(value, **way))


def test_torch_files_of_the_other_byte_order_are_refused() -> None:
    with pytest.raises(ValueError, match="highest byte"):
        torch_loaded(repacked(saved(torch.ones(2)), {"archive/byteorder": b"big"}))
    old = saved(torch.ones(2), _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="highest byte"):
        torch_loaded(old.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))


def repacked(content: bytes, changed: dict[str, bytes | None]) -> bytes:
    """A zip archive with parts changed, added, or left out where they are None."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        parts = {name: old.read(name) for name in old.namelist()} | changed
        for name, part in parts.items():
            if part is not None:
                new.writestr(name, part)
    return made.getvalue()


# --- damage ----------------------------------------------------------------------------------------------------------

SMALL = [1, "a", {"b": (2.5, None)}]


@pytest.mark.parametrize(
    "content",
    [
        *[pickle.dumps(SMALL, protocol) for protocol in PROTOCOLS],
        pickle.dumps(np.arange(3)),
        pickle.dumps(picture_of("P")),
        pickle.dumps(torch.ones(2)),
    ],
)
def test_pickles_that_are_cut_off_anywhere(content: bytes) -> None:
    loaded(content)
    for end in range(len(content)):
        with pytest.raises(ValueError, match=r"a\.pickle"):
            loaded(content[:end])
    with pytest.raises(ValueError, match="1 bytes after its end"):
        loaded(content + b".")


@both_ways
def test_torch_files_that_are_cut_off_anywhere(way: dict[str, bool]) -> None:
    content = saved([torch.ones(2), 1], **way)
    torch_loaded(content)
    for end in range(len(content)):
        with pytest.raises(ValueError, match=r"a\.pt"):
            torch_loaded(content[:end])


@given(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from([0, 2, 4]))
@settings(max_examples=150)
def test_a_changed_byte_ends_in_data_or_in_an_error(place: int, byte: int, protocol: int) -> None:
    content = bytearray(pickle.dumps([SMALL, np.arange(3), picture_of("RGB")], protocol))
    content[place % len(content)] = byte
    try:
        found = loaded(bytes(content))
    except ValueError:
        return
    assert isinstance(found, (list, tuple, dict, int, float, str, bytes, np.ndarray, Picture, type(None)))


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(max_examples=100)
def test_every_changed_byte_of_values_in_torch_files_is_noticed(place: int, change: int) -> None:
    content = bytearray(saved(torch.arange(64)))
    values = content.index(torch.arange(64).numpy().tobytes())
    content[values + place % 512] ^= change
    with pytest.raises(ValueError, match="CRC"):
        torch_loaded(bytes(content))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x80\x04", b"PK\x03\x04", b"(", b"c"]))
@settings(max_examples=150)
def test_any_bytes(garbage: bytes, start: bytes) -> None:
    for load in (loaded, torch_loaded):
        try:
            load(start + garbage + b".")
        except ValueError:
            continue


def test_nothing_there(tmp_path: Path) -> None:
    for load in (load_pickle, load_torch):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "a", TENSORS)
        with pytest.raises(ValueError, match="no ordinary file"):
            load(tmp_path, TENSORS)
