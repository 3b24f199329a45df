"""Sizes in the headers of parquet files, beside those that pyarrow makes; files that say what is not."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from mithridate.core.parquet_pages import column_chunks, largest_page

CODECS = ["none", "snappy", "gzip", "zstd", "lz4", "brotli"]


def written(columns: dict[str, list], **how: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **how)  # type: ignore[arg-type]
    return file.getvalue()


def chunks(content: bytes) -> Iterator[tuple[int, int]]:
    table = pq.ParquetFile(io.BytesIO(content)).metadata
    for group in range(table.num_row_groups):
        for column in range(table.num_columns):
            chunk = table.row_group(group).column(column)
            begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
            yield begin, chunk.total_compressed_size


def measured(content: bytes, most: int = 2**30) -> int:
    found = column_chunks(io.BytesIO(content))
    assert found == list(chunks(content))
    return largest_page(io.BytesIO(content), found, most)


@given(
    st.sampled_from(CODECS),
    st.sampled_from(["1.0", "2.0"]),
    st.booleans(),
    st.booleans(),
    st.lists(st.binary(max_size=60), min_size=1, max_size=50),
    st.integers(1, 40),
)
@settings(max_examples=60)
def test_files_of_pyarrow(codec: str, version: str, named: bool, sums: bool, values: list[bytes], group: int) -> None:
    columns = {"a": values, "b": list(range(len(values))), "c": [True] * len(values), "d": [None, 1.5] * 99}
    columns["d"] = columns["d"][: len(values)]
    content = written(
        columns,
        compression=codec,
        data_page_version=version,
        use_dictionary=named,
        write_page_checksum=sums,
        row_group_size=group,
        data_page_size=64,
    )
    found = measured(content)
    table = pq.ParquetFile(io.BytesIO(content)).metadata
    sizes = [
        table.row_group(i).column(j).total_uncompressed_size
        for i in range(table.num_row_groups)
        for j in range(table.num_columns)
    ]
    assert 0 < found <= max(sizes)


@pytest.mark.parametrize("codec", CODECS)
def test_one_large_value(codec: str) -> None:
    content = written({"a": [bytes(10**6)]}, compression=codec, use_dictionary=False)
    assert 10**6 <= measured(content) < 10**6 + 100
    with pytest.raises(ValueError, match=r"says it unpacks to 1,000,0\d\d bytes; at most 1,000 are read"):
        measured(content, 1000)


def test_a_large_value_that_is_named_often() -> None:
    named = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([bytes(10**6)]))
    file = io.BytesIO()
    pq.write_table(pa.table({"a": named}), file, compression="zstd")
    assert len(file.getvalue()) < 10**4
    assert 10**6 <= measured(file.getvalue()) < 10**6 + 100


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_values_that_share_their_beginnings(version: str) -> None:
    encoding = {"a": "DELTA_BYTE_ARRAY"}
    how = {"use_dictionary": False, "column_encoding": encoding, "data_page_version": version}
    with pytest.raises(ValueError, match="share their beginnings"):
        measured(written({"a": [b"ab", b"abc"]}, **how))


def number(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def whole(value: int) -> bytes:
    return number((value << 1) ^ (value >> 63))


def header(unpacked: int, packed: int, *, begin: bytes = b"\x15\x00", end: bytes = b"\x00") -> bytes:
    """The header of a page: its type, the two sizes, and nothing else."""
    return begin + b"\x15" + whole(unpacked) + b"\x15" + whole(packed) + end


def page(content: bytes, most: int = 10**6) -> int:
    return largest_page(io.BytesIO(content), [(0, len(content))], most)


def test_the_page_that_the_faults_are_planted_in() -> None:
    assert page(header(77, 3) + b"abc") == 77
    assert page(header(77, 3) + b"abc" + header(99, 0) + header(5, 1) + b"a") == 99
    more = b"\x2c" + b"\x15\x02\x15\x04\x15\x06\x15\x08\x1c\x18\x03abc\x00\x00\x00"  # a header of a data page
    assert page(header(77, 3, end=more) + b"abc") == 77
    assert page(header(77, 3, end=b"\x18\x01a\x11\x12\x13\x07\x17" + bytes(8) + b"\x19\x25\x02\x04\x00") + b"abc") == 77


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(2**31 - 1, 3) + b"abc", "unpacks to 2,147,483,647 bytes"),
        (header(2**62, 3) + b"abc", "unpacks to 4,6"),
        (header(-1, 3) + b"abc", "unpacks to -1 bytes"),
        (header(7, 4) + b"abc", "page of 4 bytes where 3 are left"),
        (header(7, -4) + b"abc", "page of -4 bytes"),
        (header(7, 3, end=b"\x2c\x15\x02\x15\x0e\x00\x00") + b"abc", "share their beginnings"),
        (header(7, 3, end=b"\x5c\x15\x02\x15\x02\x15\x02\x15\x0e\x00\x00") + b"abc", "share their beginnings"),
        (header(7, 2) + b"abc", "does not end|unpacks to -1|kind|out of order"),
        (header(7, 3)[:-1], "does not end"),
        (header(7, 3, begin=b"\x15\x00\x15\x02\x05\x02"), "out of order"),
        (header(7, 3, end=b"\x05\x04\x0e\x00"), "out of order"),
        (header(7, 3, end=b"\x1b\x00\x00"), "kind 11"),
        (header(7, 3, end=b"\x1f\x00\x00"), "kind 15"),
        (header(7, 3, end=b"\x1c" * 60 + b"\x00" * 61), "nested too deep"),
        (header(7, 3, end=b"\x19" + b"\x19" * 60), "nested too deep|does not end"),
        (header(7, 3, end=b"\x19\xf1\xff\xff\xff\xff\x7f\x00"), "does not end"),
        (header(7, 3, end=b"\x18\xff\xff\xff\xff\x7f\x00"), "does not end"),
        (header(7, 3, end=b"\x15" + b"\xff" * 20), "number that does not end"),
        (b"\x00", "unpacks to -1"),
        (b"\x15\x00\x15\x06\x00abc", "page of -1 bytes"),
        (b"", "has a column at"),
    ],
)
def test_odd_pages(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        page(content)


@pytest.mark.parametrize("chunk", [(-1, 4), (0, 99), (0, -4), (50, 1), (2, 0), (2**62, 2**62)])
def test_columns_outside_of_the_file(chunk: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="has a column at"):
        largest_page(io.BytesIO(header(7, 3) + b"abc"), [chunk], 99)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no parquet file"),
        (b"PAR1PAR1", "no parquet file"),
        (b"PAR1" + bytes(20), "no parquet file"),
        (b"PAR1" + struct.pack("<I", 99) + b"PAR1", "takes 99 bytes"),
        (b"PAR1\x00" + struct.pack("<I", 2**32 - 1) + b"PAR1", "takes 4,294,967,295 bytes"),
        (b"PAR1\x19\x00" + struct.pack("<I", 2) + b"PAR1", "does not end"),
    ],
)
def test_odd_ends(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        column_chunks(io.BytesIO(content))


def test_a_list_of_very_many_columns() -> None:
    for count, fits in ((2**18, True), (2**19, False)):
        columns = b"\x19\xfc" + number(count) + b"\x26\x00\x00" * count + b"\x00"
        content = b"PAR1" + columns + struct.pack("<I", len(columns)) + b"PAR1"
        if fits:
            column_chunks(io.BytesIO(content))
        else:
            with pytest.raises(ValueError, match="list of columns that is too long"):
                column_chunks(io.BytesIO(content))


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes(garbage: bytes) -> None:
    for read in (lambda: page(garbage), lambda: column_chunks(io.BytesIO(b"PAR1" + garbage + b"PAR1"))):
        try:
            read()
        except ValueError:
            continue
