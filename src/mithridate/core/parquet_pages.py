"""How much a stranger's parquet file unpacks to, read from its own headers before anything is unpacked.

Reference: Apache Parquet format, `parquet.thrift` (FileMetaData, PageHeader), in the compact protocol of Thrift.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO

_VALUES = 2**19
"""Of the list of columns at most: what reads it takes up to 300 bytes for each."""
_FOOTER = 2**26
_WINDOW = 2**16
"""Bytes of a page header at most, with the smallest and largest value of the page in it."""
_DEPTH = 12
_TRUTH, _WHOLE, _LISTS = (1, 2), (4, 5, 6), (9, 10)
_BYTE, _DOUBLE, _BINARY, _STRUCT = 3, 7, 8, 12
_UNPACKED, _PACKED = 2, 3
"""Numbers of the fields `uncompressed_page_size` and `compressed_page_size` of a PageHeader."""
_ENCODINGS = ((5, 2), (8, 4))
"""Where the two kinds of pages of data say how their values are written."""
_COLUMN = (4, 1, 3)
"""Fields that lead from a FileMetaData to a ColumnMetaData: row_groups, columns, meta_data."""
_LENGTH, _BEGIN, _DICTIONARY = 7, 9, 11
"""Of a ColumnMetaData: total_compressed_size, data_page_offset, dictionary_page_offset."""
_PREFIXES = 7
"""DELTA_BYTE_ARRAY: each value is the beginning of the one before it, and more; unpacked, there is no limit to it."""


def column_chunks(file: BinaryIO) -> list[tuple[int, int]]:
    """Returns where each column of each row group begins, and how many bytes it has, by the list at the file's end.

    It is read here, since pyarrow ends the whole process over lists that contradict themselves (a histogram of another
    length in the statistics of a column) when it is asked for a column.

    Raises:
        ValueError: no parquet file, or a list that is too long, or no list.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read(8)
    if size < 12 or end[4:] != b"PAR1":
        raise ValueError("is no parquet file, or was not copied as a whole")
    (length,) = struct.unpack("<I", end[:4])
    if length > min(_FOOTER, size - 12):
        raise ValueError(f"says that its list of columns takes {length:,} bytes; expected up to {_FOOTER:,}")
    file.seek(size - 8 - length)
    footer = _Compact(file.read(length), _VALUES)
    footer.struct()
    found = []
    for column in footer.columns:
        if _BEGIN not in column or _LENGTH not in column:
            raise ValueError("has a column that does not say where it is")
        begin = min(column[_BEGIN], column.get(_DICTIONARY) or column[_BEGIN])
        found.append((begin, column[_LENGTH]))
    return found


def largest_page(file: BinaryIO, chunks: Iterable[tuple[int, int]], most: int) -> int:
    """Returns how many bytes the largest page of these column chunks unpacks to.

    The list of columns can say what it likes; what unpacks a page makes room for what its header says, and for no
    more. Pages follow each other: each header says where the next one is.

    Args:
        file: A parquet file.
        chunks: Where each chunk begins, and how many bytes it has.
        most: Bytes that a page may unpack to.

    Raises:
        ValueError: a page that says it unpacks to more, or is no page.
    """
    found, size = 0, file.seek(0, os.SEEK_END)
    for begin, length in chunks:
        place, end = begin, begin + length
        if not 0 <= begin < end <= size:
            raise ValueError(f"has a column at {begin:,}..{end:,} of {size:,} bytes")
        while place < end:
            file.seek(place)
            header = _Compact(file.read(min(_WINDOW, end - place)), _WINDOW)
            said = header.struct()
            unpacked, packed = said.get(_UNPACKED, -1), said.get(_PACKED, -1)
            place += header.place
            if any(said.get(kind, {}).get(field) == _PREFIXES for kind, field in _ENCODINGS):
                raise ValueError("has values that share their beginnings (DELTA_BYTE_ARRAY); write them as PLAIN")
            if not 0 <= unpacked <= most:
                raise ValueError(f"has a page that says it unpacks to {unpacked:,} bytes; at most {most:,} are read")
            if not 0 <= packed <= end - place:
                raise ValueError(f"has a page of {packed:,} bytes where {end - place:,} are left")
            found, place = max(found, unpacked), place + packed
    return found


class _Compact:
    """Passes over values of Thrift's compact protocol."""

    def __init__(self, content: bytes, values: int) -> None:
        self.content, self.left, self.place = content, values, 0
        self.columns: list[dict[int, Any]] = []
        """What the list at a file's end says of each column chunk."""

    def byte(self) -> int:
        self.skip(1)
        return self.content[self.place - 1]

    def skip(self, count: int) -> None:
        self.place += count
        if self.place > len(self.content):
            raise ValueError("has a list or page whose header does not end")

    def unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("has a header with a number that does not end")

    def whole(self) -> int:
        value = self.unsigned()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int = 0, path: tuple[int, ...] = ()) -> dict[int, Any]:
        """Passes over the fields of a struct; returns its whole numbers by number of the field, structs too."""
        found: dict[int, Any] = {}
        number = 0
        while byte := self.byte():
            step, kind = byte >> 4, byte & 15
            last, number = number, number + step if step else self.whole()
            if number <= last:  # no writer does so, and readers differ in which of two equal fields they take
                raise ValueError("has a header whose fields are out of order")
            if kind in _WHOLE:
                found[number] = self.whole()
            elif kind == _STRUCT and depth == 0:
                found[number] = self.struct(1, (number,))
            elif kind not in _TRUTH:  # of a field, that is all there is
                self.value(kind, depth, (*path, number))
        if path == _COLUMN:
            self.columns.append(found)
        return found

    def value(self, kind: int, depth: int, path: tuple[int, ...]) -> None:
        self.left -= 1
        if self.left < 0 or depth > _DEPTH:
            raise ValueError("has a list of columns that is too long, or nested too deep")
        if kind in _WHOLE:
            self.unsigned()
        elif kind == _STRUCT:
            self.struct(depth + 1, path)
        elif kind in _LISTS:
            head = self.byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self.unsigned()):
                self.value(head & 15, depth + 1, path)
        elif kind == _BINARY:
            self.skip(self.unsigned())
        elif kind in (*_TRUTH, _BYTE, _DOUBLE):
            self.skip(8 if kind == _DOUBLE else 1)
        else:
            raise ValueError(f"has a header with a value of kind {kind}")
