"""Limits hold, whatever a pickle says; instructions that plain data have no need of are refused."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mithridate.core.pickle_machine import _CODES
from tests.core.test_unpickling import loaded, repacked, saved, torch_loaded

PROTO = b"\x80\x04"


def nested(depth: int, wrap: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


# --- limits ----------------------------------------------------------------------------------------------------------


def test_size() -> None:
    assert loaded(pickle.dumps(1), file_bytes=len(pickle.dumps(1))) == 1
    with pytest.raises(ValueError, match="has 5 bytes; at most 4 are read"):
        loaded(pickle.dumps(1), file_bytes=4)


def test_operations() -> None:
    content = pickle.dumps([1, 2, 3], 2)
    count = len(list(pickletools.genops(content)))
    assert loaded(content, operations=count) == [1, 2, 3]
    with pytest.raises(ValueError, match=f"more than {count - 1} instructions"):
        loaded(content, operations=count - 1)


def test_operations_of_pickles_inside_pickles_count() -> None:
    content = pickle.dumps([torch.ones(1), torch.zeros(1)])
    count = len(list(pickletools.genops(content)))
    assert len(loaded(content)) == 2
    with pytest.raises(ValueError, match="instructions"):
        loaded(content, operations=count + 50)


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: (x,), lambda x: {"a": x}, lambda x: [1, (x, 2)][1:]])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_depth(wrap: Callable[[Any], Any], protocol: int) -> None:
    per = 2 if isinstance(wrap(1), list) and wrap(1) != [1] else 1
    fits, deeper = nested(8 // per, wrap), nested(8 // per + 1, wrap)
    assert loaded(pickle.dumps(fits, protocol), depth=8) == fits
    with pytest.raises(ValueError, match="nested more than 8 deep"):
        loaded(pickle.dumps(deeper, protocol), depth=8)
    assert loaded(pickle.dumps([fits, fits], protocol), depth=9) == [fits, fits]


def test_depth_counts_parts_that_were_seen_before() -> None:
    """Each list is named at the top, next to the one that holds it: no path from the top is new and long."""
    chain: list[Any] = [[]]
    for _ in range(40):
        chain.append([chain[-1]])
    for order in (chain, chain[::-1]):
        with pytest.raises(ValueError, match="nested more than 32 deep"):
            loaded(pickle.dumps(order))
    assert loaded(pickle.dumps(chain[:30])) == chain[:30]


def test_values_are_counted_as_often_as_they_are_named() -> None:
    laughs = nested(6, lambda inner: [inner] * 10)
    assert loaded(pickle.dumps(laughs), values=2 * 10**6) == laughs
    with pytest.raises(ValueError, match="more than 1,000,000 values"):
        loaded(pickle.dumps(laughs), values=10**6)


@pytest.mark.parametrize("wrap", [lambda x: [x] * 10, lambda x: (x,) * 10, lambda x: dict.fromkeys("abcdefghij", x)])
def test_billion_laughs(wrap: Callable[[Any], Any]) -> None:
    content = pickle.dumps(nested(25, wrap))
    assert len(content) < 2000
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 8,000,000 values"):
        loaded(content)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**20


def test_pixels() -> None:
    content = pickle.dumps(Image.new("L", (30, 20)))
    assert loaded(content, pixels=600).size == (30, 20)
    with pytest.raises(ValueError, match=r"of size \(30, 20\); expected at most 599 pixels"):
        loaded(content, pixels=599)


def test_parts() -> None:
    content = saved([torch.ones(1) for _ in range(20)])
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        count = len(packed.namelist())
    assert len(torch_loaded(content, parts=count)) == 20
    with pytest.raises(ValueError, match=f"has {count} parts; at most {count - 1} are read"):
        torch_loaded(content, parts=count - 1)


def test_a_long_list_of_parts_is_not_read() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as packed:
        for name in range(3000):
            packed.writestr(str(name), b"")
    with pytest.raises(ValueError, match="list of parts of"):
        torch_loaded(made.getvalue(), parts=10)


@pytest.mark.parametrize(
    "code", [b"\x8b\x0a\0\0\0" + b"\x7f" * 10, b"\x8a\x0f" + b"\xff" * 14 + b"\x7f", b"L" + b"9" * 30 + b"L\n"]
)
def test_whole_numbers_of_more_than_64_bits(code: bytes) -> None:
    with pytest.raises(ValueError, match="more than 64 bits"):
        loaded(PROTO + code + b".")
    with pytest.raises(ValueError, match=r"a\.pickle"):
        loaded(PROTO + b"I" + b"9" * 9999 + b"\n.")  # Python itself reads no number of so many digits


# --- structures ------------------------------------------------------------------------------------------------------


def own_list() -> Any:
    value: list[Any] = [1]
    value.append(value)
    return value


def own_tuple() -> Any:
    inner: list[Any] = []
    value = (inner, 1)
    inner.append(value)
    return value


def own_dict() -> Any:
    value: dict[str, Any] = {}
    value["a"] = [value]
    return value


@pytest.mark.parametrize("make", [own_list, own_tuple, own_dict])
@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_what_contains_itself(make: Callable[[], Any], protocol: int) -> None:
    with pytest.raises(ValueError, match=r"contains itself|no pickle of plain data has"):
        loaded(pickle.dumps(make(), protocol))


def test_what_contains_itself_without_an_instruction_of_its_own() -> None:
    for content in (b"]\x94h\x00a.", b"}\x94\x8c\x01ah\x00s.", b"]\x94(h\x00ta.", b"]\x94}\x94\x8c\x01ah\x00sa."):
        with pytest.raises(ValueError, match="contains itself"):
            loaded(PROTO + content)


KEPT = b"B" + struct.pack("<I", 2**16) + bytes(2**16) + b"\x94a"
"""64 KiB of zeros in a list, kept as part 0."""
TEXT = b"X" + struct.pack("<I", 2**16) + bytes(2**16) + b"\x94a"
DTYPE = b"cnumpy\ndtype\n\x94\x8c\x02i8\x85R(K\x03\x8c\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x94"


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (TEXT, b"c_codecs\nencode\nh\x00\x8c\x06latin1\x86Ra"),
        (TEXT, b"cbuiltins\nbytearray\nh\x00\x8c\x06latin1\x86Ra"),
        (KEPT, b"cnumpy._core.numeric\n_frombuffer\n(h\x00" + DTYPE + b"J\x00\x20\0\0\x85\x8c\x01CtRa"),
        (KEPT, b"cPIL.Image\nImage\n)\x81](N\x8c\x01LJ\x00\x01\0\0J\x00\x01\0\0\x86Nh\x00eba"),
    ],
    ids=["encode", "bytearray", "arrays of the other byte order", "images"],
)
def test_the_same_bytes_are_not_copied_again_and_again(begin: bytes, again: bytes) -> None:
    assert len(loaded(PROTO + b"]" + begin + again * 3 + b".")) == 4
    with pytest.raises(ValueError, match="again and again"):
        loaded(PROTO + b"]" + begin + again * 99 + b".")


def test_one_storage_is_read_once_however_often_it_is_named() -> None:
    tensor = torch.zeros(2**18)
    content = saved(tensor)
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        name = next(name for name in packed.namelist() if name.endswith("data.pkl"))
        one = packed.read(name)
    begin, end = one.index(b"ctorch._utils"), len(one) - 1
    many = one[:begin] + b"](" + one[begin:end] * 200 + b"e."
    tracemalloc.start()
    found = torch_loaded(repacked(content, {name: many}))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 200
    assert {one.data_ptr() for one in found} == {found[0].data_ptr()}
    assert most < 20 * 2**20
    other = one[begin:end].replace(b"FloatStorage", b"IntStorage")
    odd = repacked(content, {name: one[:begin] + b"](" + one[begin:end] + other + b"e."})
    with pytest.raises(ValueError, match="two things of the values"):
        torch_loaded(odd)


# --- instructions ----------------------------------------------------------------------------------------------------

PLAIN_CODES = {code for code in pickletools.opcodes if code.code.encode("latin1") in _CODES or code.name == "STOP"}
REFUSED = sorted((code.name, code.code.encode("latin1")) for code in pickletools.opcodes if code not in PLAIN_CODES)


def test_which_instructions_are_refused() -> None:
    assert [name for name, _ in REFUSED] == [
        "ADDITEMS", "BINSTRING", "DUP", "EMPTY_SET", "EXT1", "EXT2", "EXT4", "FROZENSET", "INST", "NEWOBJ_EX",
        "NEXT_BUFFER", "OBJ", "PERSID", "POP", "POP_MARK", "READONLY_BUFFER", "SHORT_BINSTRING", "STRING",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "code"), REFUSED, ids=[name for name, _ in REFUSED])
def test_each_of_them(name: str, code: bytes) -> None:
    with pytest.raises(ValueError, match=f"has the instruction {name}, which no pickle of plain data has"):
        loaded(PROTO + b"N" + code + bytes(9) + b".")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b".", "parts left over"),
        (b"NN.", "parts left over"),
        (b"(N.", "parts left over"),
        (b"\x00", "in place of an instruction"),
        (b"\x85.", "empty stack"),
        (b"N\x86.", "empty stack"),
        (b"t.", "did not begin"),
        (b"Na.", "empty stack|no list"),
        (b"NNa.", "adds to something that is no list"),
        (b")(Ne.", "adds to something that is no list"),
        (b"N(Nu.", "no dictionary"),
        (b"}(Nu.", "no dictionary"),
        (b"](NNu.", "no dictionary"),
        (b"}])s.", "dictionary with a list for a key"),
        (b"}))s.", "dictionary with a tuple for a key"),
        (b"}cnumpy\ndtype\nNs.", "dictionary with a Named for a key"),
        (b"h\x07.", "recalls part 7"),
        (b"\x94.", "keeps a part that is not there"),
        (b"Nr\xff\xff\xff\xff.", "keeps a part under the number"),
        (b"Np-1\n.", "keeps a part under the number -1"),
        (b"NN\x93.", "by what is no text"),
        (b"\x8c\x05numpyN\x93.", "by what is no text"),
        (b"N)R.", "calls something that is no name"),
        (b"cnumpy\ndtype\n]R.", "calls something that is no name"),
        (b"N}b.", "sets the state of a NoneType"),
        (b"]}b.", "sets the state of a list"),
        (b"cnumpy\ndtype\n.", "holds numpy.dtype where a value was expected"),
        (b"cnumpy\ndtype\n)R.", r"TypeError: _Kind.__init__"),
        (b"cnumpy\ndtype\n\x8c\x02i4\x85R.", "a type of numbers where a value was expected"),
        (b"cnumpy\ndtype\n\x8c\x02i4\x85R}b.", "several fields"),
        (b"ccollections\nOrderedDict\n]\x85R.", "in another way than torch"),
        (b"cPIL.Image\nImage\n)\x81.", "an image without pixels"),
        (b"cbuiltins\nobject\n)\x81.", "a bare object"),
        (b"ctorch\nFloatStorage\n)R.", "storage without values"),
        (b"ctorch._utils\n_rebuild_parameter\nN\x85R.", "no tensor"),
        (b"NQ.", "refers to something outside of it"),
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.", "is cut off"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fN.", "is cut off"),
        (b"\x96\xff\xff\xff\xff\xff\xff\xff\xffN.", r"a\.pickle"),
        (b"X\xff\xff\xff\xffN.", "is cut off"),
        (b"\x8c\x01\xff.", r"a\.pickle"),
    ],
)
def test_odd_programs(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loaded(PROTO + content)


def test_what_is_named_is_shown_safely() -> None:
    with pytest.raises(ValueError) as error:
        loaded(b"c" + b"a" * 5000 + b"\n\x1b[31mb\n.")
    assert len(str(error.value)) < 500
    with pytest.raises(ValueError, match=r"'os\\x1b\[31m\.system'"):
        loaded(PROTO + b"\x8c\x07os\x1b[31m\x8c\x06system\x93.")


def test_names_must_be_equal_to_the_last_letter() -> None:
    loaded(pickle.dumps(np.arange(2)))
    for module, name in (
        ("numpy", "dtype "), ("Numpy", "dtype"), ("numpy", "dtype.type"), ("numpy.core", "multiarray._reconstruct"),
        ("numpy", "ｄtype"), ("numpy\0", "dtype"), ("", "numpy.dtype"), ("numpy.", "dtype"), ("numpy ", "dtype"),
    ):  # fmt: skip
        parts = b"".join(b"\x8c" + bytes([len(one.encode())]) + one.encode() for one in (module, name))
        with pytest.raises(ValueError, match="asks for"):
            loaded(PROTO + parts + b"\x93.")
