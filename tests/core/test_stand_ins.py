"""Stand-ins take any arguments and any state, and become what they stand for or end in an error."""

from __future__ import annotations

import io
import pickle
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mithridate.core.stand_ins import EVERYTHING, Named, Picture, shown
from tests.core.test_unpickling import loaded, repacked, saved, torch_loaded

RESULTS = (bool, int, float, str, bytes, bytearray, list, tuple, dict, type(None), np.ndarray, torch.Tensor, Picture)


# --- programs --------------------------------------------------------------------------------------------------------


def name(module: str, function: str) -> bytes:
    """Instructions that put a name on the stack."""
    return f"c{module}\n{function}\n".encode()


def plain(value: Any) -> bytes:
    """Instructions that put plain data on the stack."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 3)
    pickler.fast = True  # keeps nothing, so that programs can be put together
    pickler.dump(value)
    return file.getvalue()[2:-1]


def several(*parts: bytes) -> bytes:
    """Instructions that put a tuple of these on the stack."""
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *parts: bytes) -> bytes:
    return function + several(*parts) + b"R"


def build(made: bytes, state: bytes) -> bytes:
    return made + state + b"b"


NAMES = [name(*key) for key in EVERYTHING] + [name("torch.storage", "_load_from_bytes")]
WHOLE = st.sampled_from([0, 1, 2, 3, -1, 8, 2**31, 2**40, 2**62])
SHAPES = st.lists(WHOLE, max_size=3).map(tuple)
WORDS = st.sampled_from(
    ["<", ">", "|", "u1", "i8", "f4", "O", "V8", "C", "F", "K", "latin1", "RGB", "L", "P", "RGBA", "0"]
)
ATOMS = (
    WHOLE | SHAPES | WORDS | st.booleans() | st.none() | st.binary(max_size=12) | st.text(max_size=3) | st.floats(0, 1)
).map(plain)
PROGRAMS = st.recursive(
    st.sampled_from(NAMES) | ATOMS,
    lambda inner: (
        st.tuples(st.sampled_from(NAMES), st.lists(inner, max_size=5)).map(lambda made: call(made[0], *made[1]))
        | st.tuples(inner, st.lists(inner, max_size=6)).map(lambda made: build(made[0], several(*made[1])))
        | st.lists(inner, max_size=3).map(lambda parts: several(*parts))
        | inner.map(lambda key: several(plain("storage"), key, plain("0"), plain("cpu"), plain(1)) + b"Q")
    ),
    max_leaves=12,
)


@given(PROGRAMS)
@settings(max_examples=600)
def test_any_program_of_allowed_names(program: bytes) -> None:
    try:
        found = loaded(b"\x80\x02" + program + b".")
    except ValueError:
        return
    assert isinstance(found, RESULTS)


# --- numpy -----------------------------------------------------------------------------------------------------------

U1 = build(call(name("numpy", "dtype"), plain("u1")), plain((3, "|", None, None, None, -1, -1, 0)))
EMPTY = call(name("numpy._core.multiarray", "_reconstruct"), name("numpy", "ndarray"), plain((0,)), plain(b"b"))


def array(
    *, version: Any = 1, shape: Any = (2,), kind: bytes = U1, fortran: Any = False, content: Any = b"ab"
) -> bytes:
    return build(EMPTY, several(plain(version), plain(shape), kind, plain(fortran), plain(content)))


def test_the_array_that_the_faults_are_planted_in() -> None:
    assert loaded(b"\x80\x02" + array() + b".").tolist() == [97, 98]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (array(content=b"abc"), r"shape \(2,\) with 3 bytes; expected 2"),
        (array(content=["a", "b"]), "array of list objects"),
        (array(content="ab"), "array of str objects"),
        (array(shape=(2**40,)), "expected up to 8 lengths"),
        (array(shape=(2**39, 2**39)), r"with 2 bytes"),
        (array(shape=(1,) * 9), "expected up to 8 lengths"),
        (array(shape=(-2, -1)), "expected up to 8 lengths"),
        (array(shape=[2]), "shape a list; expected up to"),
        (array(shape=(True, 2)), "expected up to 8 lengths"),
        (array(shape=(2.0,)), "expected up to 8 lengths"),
        (array(kind=plain("u1")), "without a type of numbers"),
        (array(kind=name("numpy", "dtype")), "without a type of numbers"),
        (array(kind=call(name("numpy", "dtype"), plain("O"))), "an array of 'O'"),
        (array(kind=call(name("numpy", "dtype"), plain("u1,u1"))), "an array of 'u1,u1'"),
        (array(kind=call(name("numpy", "dtype"), plain("99999999i8"))), "expected plain numbers"),
        (array(kind=build(U1, plain((3, "!", None, None, None, -1, -1, 0)))), "byte order '!'"),
        (array(kind=build(U1, plain((3, "|", None, ("a",), {"a": 1}, -1, -1, 0)))), "several fields"),
        (EMPTY, "an array without values"),
        (build(EMPTY, plain((1, 2))), "state is not that of numpy"),
        (
            call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "dtype"), plain((0,)), plain(b"b")),
            "class of its own",
        ),
        (array(kind=call(name("numpy", "dtype"), plain("b1")), content=b"\x02\x00"), "neither 0 nor 1"),
        (call(name("numpy._core.multiarray", "scalar"), U1, plain(b"ab")), r"shape \(\) with 2 bytes"),
    ],
)
def test_odd_arrays(program: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loaded(b"\x80\x02" + program + b".")


# --- Pillow ----------------------------------------------------------------------------------------------------------


def image(mode: Any = "RGB", size: Any = (2, 1), palette: Any = None, content: Any = b"abcdef") -> bytes:
    return build(name("PIL.Image", "Image") + b")\x81", plain([{}, mode, size, palette, content]))


def test_the_image_that_the_faults_are_planted_in() -> None:
    found = loaded(b"\x80\x02" + image() + b".")
    assert found.tensor((3, 1, 2)).tolist() == [[[97, 100]], [[98, 101]], [[99, 102]]]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (image("F"), "mode 'F'"),
        (image(3), "mode 3"),
        (image(size=(2, 2)), "2x2 with 6 bytes; expected 12"),
        (image(size=(2**39, 2**39)), "at most 16,777,216 pixels"),
        (image(size=(0, 1)), "expected at most"),
        (image(size=(-2, -1)), "expected at most"),
        (image(size=(2, 1, 1)), "expected at most"),
        (image(size=[2, 1]), "of size a list"),
        (image(content="abcdef"), "with str instead of bytes"),
        (image("P", palette=[1, 2], content=b"\0\0"), "no list of up to 256 colours"),
        (image("P", palette=[256, 0, 0], content=b"\0\0"), "no list of up to 256 colours"),
        (image("P", palette=[0] * 771, content=b"\0\0"), "no list of up to 256 colours"),
        (build(name("PIL.Image", "Image") + b")\x81", plain([1, 2])), "state is not that of Pillow"),
        (
            call(name("copyreg", "_reconstructor"), name("numpy", "dtype"), name("builtins", "object"), b"N"),
            "else than",
        ),
        (call(name("copyreg", "_reconstructor"), name("PIL.Image", "Image"), b"N", b"N"), "else than"),
    ],
)
def test_odd_images(program: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loaded(b"\x80\x02" + program + b".")


def test_pictures_must_have_the_shape_of_the_data() -> None:
    picture = Picture("RGB", (2, 1), bytes(6))
    with pytest.raises(ValueError, match="2x1 pixels, the images of the data 1x2"):
        picture.tensor((3, 2, 1))
    with pytest.raises(ValueError, match="of mode RGB; the images of the data have 1 channels"):
        picture.tensor((1, 1, 2))
    with pytest.raises(ValueError, match="seen through"):
        Picture("RGBA", (1, 1), b"\1\2\3\xfe").tensor((3, 1, 1))
    assert Picture("RGBA", (1, 1), b"\1\2\3\xff").tensor((3, 1, 1)).flatten().tolist() == [1, 2, 3]
    assert Picture("P", (2, 1), b"\1\xff", bytes(range(9))).tensor((3, 1, 2))[:, 0].T.tolist() == [[3, 4, 5], [0, 0, 0]]


# --- torch -----------------------------------------------------------------------------------------------------------


def stored(kind: str = "FloatStorage", key: Any = "0", count: Any = 2, *more: bytes) -> bytes:
    return several(plain("storage"), name("torch", kind), plain(key), plain("cpu"), plain(count), *more) + b"Q"


def tensor(storage: bytes, offset: Any = 0, size: Any = (2,), stride: Any = (1,)) -> bytes:
    end = (plain(False), call(name("collections", "OrderedDict")))
    return call(name("torch._utils", "_rebuild_tensor_v2"), storage, plain(offset), plain(size), plain(stride), *end)


def in_a_torch_file(program: bytes, values: bytes = struct.pack("<2f", 1, 2)) -> Any:
    parts = {"archive/data.pkl": b"\x80\x02" + program + b".", "archive/data/0": values}
    return torch_loaded(repacked(saved(1), parts))


def test_the_tensor_that_the_faults_are_planted_in() -> None:
    assert in_a_torch_file(tensor(stored())).tolist() == [1, 2]
    assert in_a_torch_file(tensor(stored(), size=(0, 5), stride=(5, 1))).shape == (0, 5)
    assert in_a_torch_file(tensor(stored(), offset=1, size=(), stride=())).item() == 2
    assert in_a_torch_file(tensor(stored("BoolStorage")), b"\0\1").tolist() == [False, True]


@pytest.mark.parametrize(
    ("program", "values", "said"),
    [
        (tensor(stored(), size=(3,)), 8, r"tensor \(3,\) of 2 values"),
        (tensor(stored(), offset=1), 8, "of 2 values"),
        (tensor(stored(), offset=-1), 8, "odd shape"),
        (tensor(stored(), stride=(2,)), 8, "of 2 values"),
        (tensor(stored(), stride=(-1,)), 8, "odd shape"),
        (tensor(stored(), size=(2**39, 2**39), stride=(0, 0)), 8, "of 2 values"),
        (tensor(stored(), size=(3,), stride=(0,)), 8, "of 2 values"),
        (tensor(stored(), size=(2, 1)), 8, "odd shape"),
        (tensor(stored(), size=[2]), 8, "odd shape"),
        (tensor(plain("0")), 8, "odd shape"),
        (tensor(stored()), 12, "values '0' of 12 bytes; expected 2 of 4"),
        (tensor(stored()), 4, "values '0' of 4 bytes"),
        (tensor(stored(count=2**40)), 8, "expected 1,099,511,627,776 of 4"),
        (tensor(stored(count=-1)), 8, "odd way"),
        (tensor(stored(count=True)), 8, "odd way"),
        (tensor(stored(key=0)), 8, "odd way"),
        (tensor(stored(key="../version")), 8, "KeyError"),
        (tensor(stored("FloatStorage", "0", 2, plain(("0", 0, 2)))), 8, "part of other values"),
        (tensor(stored("ComplexFloatStorage")), 8, "asks for 'torch.ComplexFloatStorage'"),
        (tensor(stored("UntypedStorage")), 8, "asks for 'torch.UntypedStorage'"),
        (tensor(stored("QUInt8Storage")), 8, "asks for"),
        (several(plain("module"), plain(1), plain("0"), plain("cpu"), plain(2)) + b"Q", 8, "outside of it"),
        (tensor(stored("BoolStorage", "0", 8)), 8, "neither 0 nor 1"),
        (stored(), 8, "bare storage"),
    ],
)
def test_odd_tensors(program: bytes, values: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        in_a_torch_file(program, b"\3" * values)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (plain("x"), "something else than bytes"),
        (plain(b"x"), "no file of torch.save"),
        (plain(saved(torch.ones(1))), "no file of torch.save"),
        (plain(saved(torch.ones(1), _use_new_zipfile_serialization=False)), "asks for 'torch._utils._rebuild"),
        (plain(saved([1], _use_new_zipfile_serialization=False)), "something else than the values"),
        (plain(torch.ones(1).__reduce_ex__(2)[1][0].__reduce__()[1][0][:-1]), "is cut off"),
    ],
    ids=["text", "garbage", "zip", "tensor", "list", "cut off"],
)
def test_odd_storages_of_plain_pickles(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loaded(b"\x80\x02" + call(name("torch.storage", "_load_from_bytes"), content) + b".")


def test_values_in_messages_are_short() -> None:
    for value in ("a" * 999, b"a" * 999, [1] * 999, (1,) * 999, {"a": 1}, Named("a", "b", int), 2**62):
        assert len(shown(value)) < 60
