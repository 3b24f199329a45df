"""Hostile arrays, images and tables, made by code."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.core.hostile import Corpus, called, zipped
from tests.core.test_parquet_pages import header, number
from tests.core.test_safe_images import bomb, part, saved


def npy(said: str, content: bytes = b"", version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    """An array file of this header."""
    text = said.encode("latin1")
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + text + content


def array_files(canary: Path) -> Corpus:
    run = called("os", "system", f"touch {canary}")["reduce"]
    plain = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}\n"
    shapes = [
        "(1099511627776, 4, 4, 3)",
        "(-1, 4, 4, 3)",
        "(4294967296,) * 3",
        "(24.0,)",
        "'24'",
        "(True,)",
        "()",
        "(0,) * 99",
    ]
    types = [
        "'|O'",
        "'<f99999999'",
        "'V4294967295'",
        "'<U1073741824'",
        "[('a', '<f8', (99999999, 99999999))]",
        "('<f8', 24)",
        "'<M8[ns]'",
        "[('a', '|O')]",
        "__import__('os').system('touch canary')",
        "{'names': ['a'], 'formats': ['|O']}",
        "None",
        "'<c16'",
    ]
    found = {f"array of shape {shape}": npy(plain.format("'<f8'", shape), bytes(999)) for shape in shapes}
    found |= {f"array of {kind}": npy(plain.format(kind, "(24,)"), run) for kind in types}
    return found | {
        "array of calls": npy(plain.format("'|O'", "(1,)"), run),
        "header that is code": npy("__import__('os').system('touch canary')\n"),
        "header that is deep": npy("(" * 9000),
        "header that is long": npy("{" + " " * 65000 + "}"),
        "header of 4 GiB": npy("{}", version=(2, 0), length=2**32 - 1),
        "header that ends": npy("{'descr'", length=9999),
        "version 3": npy(plain.format("'<f8'", "(24,)"), version=(3, 0)),
        "version 255": npy(plain.format("'<f8'", "(24,)"), version=(255, 255)),
        "magic alone": b"\x93NUMPY",
        "pickle": run,
        "nothing": b"",
    }


def npz_files(canary: Path) -> Corpus:
    images = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 3, 4, 4), }\n", bytes(144))
    found = {
        f"npz with {name}": zipped([("images.npy", one)], zipfile.ZIP_DEFLATED)
        for name, one in array_files(canary).items()
    }
    for name in (
        "../images.npy",
        "/tmp/rows.npy",
        "rows.npy/../../x",
        "a\\rows.npy",
        "rows\0.npy",
        "evil.pkl",
        "allow_pickle",
    ):
        found[f"npz with a part {name!a}"] = zipped([("images.npy", images), (name, images)])
    big = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 3, 4, 4), }\n", bytes(3 * 10**8))
    notes = npy("{'descr': '<U400000000', 'fortran_order': False, 'shape': (), }\n", bytes(10**6))
    return found | {
        "npz bomb": zipped([("images.npy", big)], zipfile.ZIP_DEFLATED),
        "npz with long notes": zipped([("images.npy", images), ("notes.npy", notes)], zipfile.ZIP_DEFLATED),
        "npz of very many parts": zipped([("images.npy", images), *((f"a{i}", b"") for i in range(10**4))]),
        "npz in npz": zipped([("images.npy", zipped([("images.npy", images)]))]),
        "npz of two": zipped([("images.npy", images), ("images.np2", images)]).replace(b".np2", b".npy"),
        "no zip": b"PK\x03\x04" + bytes(99),
        "an end of a zip alone": b"PK\x05\x06" + b"\xff" * 18,
    }


def png(*parts: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def image_bombs() -> Corpus:
    """Images of 4 x 4 pixels with parts that unpack to 300 MB; who leaves these out has an ordinary image."""
    head = part(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    data, end = part(b"IDAT", zlib.compress(b"\0" * 52)), part(b"IEND", b"")
    zeros = zlib.compress(bytes(3 * 10**8), 1)
    return {
        "pixels": png(head, part(b"IDAT", zeros), end),
        "text": png(head, part(b"zTXt", b"a\0\0" + zeros), data, end),
        "text of letters": png(head, part(b"iTXt", b"a\0\1\0\0\0" + zeros), data, end),
        "profile": png(head, part(b"iCCP", b"a\0\0" + zeros), data, end),
        "very many parts": png(head, part(b"tEXt", b"a\0b") * 10**5, data, end),
        "very many frames": png(head, part(b"acTL", struct.pack(">II", 10**6, 0)), data, end),
    }


def image_files() -> Corpus:
    head = part(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    end = part(b"IEND", b"")
    data = part(b"IDAT", zlib.compress(b"\0" * 52))
    found = {f"{side[0]}x{side[1]}": bomb(*side) for side in ((50000, 50000), (2**31 - 1, 1), (0, 0), (2**31, 2**31))}
    found |= {
        "pixels that end": png(head, part(b"IDAT", zlib.compress(b"\0" * 20)), end),
        "no pixels": png(head, end),
        "no header": png(data, end),
        "two headers": png(head, part(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)), data, end),
        "part of 2 GiB": png(head, b"\x7f\xff\xff\xffIDAT"),
        "part of 4 GiB": png(head, b"\xff\xff\xff\xffIDAT"),
        "wrong checksum": png(head, data[:-1] + b"\0", end),
        "no end": png(head, data),
        "32 bits": png(part(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 32, 2, 0, 0, 0)), data, end),
        "colours of a kind that is none": png(part(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 9, 0, 0, 0)), data, end),
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n(canary) (w) file\n",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "XPM": b"/* XPM */ static char",
        "FITS": b"SIMPLE  =                    T",
    }
    for kind in ("GIF", "TIFF", "ICO", "PPM", "TGA", "PCX", "PDF", "EPS"):
        found[kind] = saved(kind, (4, 4))
    for kind in ("BMP", "JPEG", "WEBP"):
        content = saved(kind, (4, 4))
        found[f"half a {kind}"] = content[: len(content) // 2]
    large = bytearray(saved("BMP", (4, 4)))
    large[18:26] = struct.pack("<ii", 30000, -30000)
    return found | {
        "BMP of 30000 pixels": bytes(large),
        "JPEG of 65500 pixels": _jpeg(65500),
        "text": b"text",
        "nothing": b"",
    }


def _jpeg(side: int) -> bytes:
    content = bytearray(saved("JPEG", (4, 4)))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", side, side)
    return bytes(content)


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(columns: dict[str, object], **how: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), file, **how)  # type: ignore[arg-type]
    return file.getvalue()


def _paged(unpacked: int, packed: int) -> bytes:
    """A table whose first page says that it has other sizes than it has."""
    content = _table({"image": [b"abc"] * 24, "label": [0] * 24}, use_dictionary=False, compression="gzip")
    place, new = 4, header(unpacked, packed)
    return content[:place] + new + content[place + len(new) :]


def _of_two_lengths(content: bytes) -> bytes:
    """A histogram of three entries, in the statistics of a column, where the schema makes two."""
    (length,) = struct.unpack("<I", content[-8:-4])
    footer = content[-8 - length : -8]
    place = footer.index(b"\x19\x26") + 1
    footer = footer[:place] + b"\x36\x00" + footer[place + 1 :]
    return content[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def tables(canary: Path) -> Corpus:
    run = called("os", "system", f"touch {canary}")["reduce"]
    labels = {"label": [0] * 24}
    large = bytes(8 * 10**6)
    named = pa.DictionaryArray.from_arrays(pa.array([0] * 24, pa.int32()), pa.array([large]))
    schema = pa.schema(
        [
            pa.field(
                "image",
                pa.binary(),
                metadata={"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": run},
            )
        ]
    )
    strange = pa.Table.from_arrays([pa.array([b"a"] * 24)], schema=schema)
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, schema) as arrow:
        arrow.write_table(strange)
    columns = b"\x15\x02\x19\x2c\x48\x01r\x15\x02\x00\x15\x02\x25\x02\x18\x01a\x00\x16\x00\x19\x1c\x19\xfc"
    columns += number(10**6) + b"\x26\x00\x00" * 10**6 + b"\x16\x00\x16\x00\x00\x00"
    deep = {"huggingface": b'{"info": {"features": ' + b"[" * 10**5}
    one, zeros = pa.array([b"a"] * 24), pa.array(np.zeros(10**7, np.int64))
    many = pa.ListArray.from_arrays(pa.array([0, *[10**7] * 24], pa.int32()), zeros)
    none = {"huggingface": b"[]"}
    plain, nulls = _table({"image": [b"a"] * 24, **labels}), pa.nulls(10**6, pa.int64())
    return {
        "a page of 2 GiB": _paged(2**31 - 1, 68),
        "a page of -1 bytes": _paged(-1, 68),
        "a page that is packed to 2 GiB": _paged(348, 2**31 - 1),
        "an image of 80 MB": _table(
            {"image": [bytes(8 * 10**7), *[b"a"] * 23], **labels}, compression="zstd", use_dictionary=False
        ),
        "one image that is named often": _table({"image": named, **labels}, compression="zstd"),
        "images of 8 MB": _table({"image": [large] * 24, **labels}, compression="zstd", use_dictionary=False),
        "images that begin alike": _table(
            {"image": [large + bytes([i]) for i in range(24)], **labels},
            compression="zstd",
            use_dictionary=False,
            column_encoding={"image": "DELTA_BYTE_ARRAY", "label": "PLAIN"},
        ),
        "very many columns": b"PAR1" + columns + struct.pack("<I", len(columns)) + b"PAR1",
        "a type that pickles": _table(strange),
        "features that are deep": _table(pa.table({"image": [b"a"] * 24, **labels}).replace_schema_metadata(deep)),
        "features that are none": _table(pa.table({"image": [b"a"] * 24, **labels}).replace_schema_metadata(none)),
        "an end of 4 GiB": plain[:-8] + b"\xff\xff\xff\xffPAR1",
        "an end that is elsewhere": plain[:-8] + b"\x01\0\0\0PAR1",
        "encrypted": plain[:-4] + b"PARE",
        "half": plain[: len(plain) // 2],
        "a histogram of another length": _of_two_lengths(plain),
        "no rows": _table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}),
        "rows without end": _table({"image": pa.array([None] * 10**6, pa.binary()), "label": nulls}),
        "images elsewhere": _table({"image": pa.array([{"bytes": None, "path": "/etc/passwd"}] * 24), **labels}),
        "numbers": _table({"image": [1] * 24, **labels}),
        "a label of very many numbers": _table({"image": [b"a"] * 24, "label": many}, data_page_size=2**30),
        "an image with more": _table({"image": pa.StructArray.from_arrays([one, many], ["bytes", "more"]), **labels}),
        "an image of numbers": _table({"image": pa.StructArray.from_arrays([many], ["bytes"]), **labels}),
        "lists in lists": _table({"image": pa.array([[[[b"a"]]]] * 24), **labels}),
        "nothing": b"",
        "pickle": run,
        "arrow": stream.getvalue(),
    }
