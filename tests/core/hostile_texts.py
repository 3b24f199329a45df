"""Hostile names, JSON, CSV, safetensors and manifests, made by code; and what a name can lead to."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from tests.core.hostile import Corpus
from tests.core.hostile_files import image_files
from tests.core.test_safe_images import bomb

NAMES = [
    "../canary.png",
    "../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "//host/share/0.png",
    "C:\\0.png",
    "..\\0.png",
    "a\0b.png",
    "0.png\0",
    "~/0.png",
    "file:///etc/passwd",
    "http://localhost/0.png",
    "gs://bucket/0.png",
    "\\\\.\\COM1",
    "a/../../0.png",
    "./../0.png",
    "a" * 300 + ".png",
    "a/" * 2000 + "0.png",
    "",
    ".",
    "..",
    "/",
    "pipe.png",
    "loop.png",
    "outside.png",
    "zero.png",
    "\ud800.png",
    "\u202egnp.0",
    "$(touch canary).png",
    "`touch canary`.png",
    "|touch canary",
]
"""What a table can say of where an image is; the last ones but six are links that `trapped` lays."""


# --- text ------------------------------------------------------------------------------------------------------------


def json_lines(lines: list[str]) -> Corpus:
    """Faults in `metadata.jsonl`, whose own lines are given."""
    found: Corpus = {}
    for name in NAMES:
        line = json.loads(lines[0]) | {"file_name": name}
        found[f"name {name[:40]!a}"] = "\n".join([json.dumps(line), *lines[1:]]).encode()
    first = {
        "deep": "[" * 4000,
        "deep objects": '{"a":' * 700,
        "many digits": '{"file_name": "a", "row": ' + "9" * 3900 + "}",
        "no number": '{"file_name": "ant/0.png", "label": NaN, "row": Infinity}',
        "half": lines[0][:-3],
        "a list": "[]",
        "a name of numbers": '{"file_name": 0}',
        "a long line": json.dumps(json.loads(lines[0]) | {"more": "a" * 5000}),
        "bytes that are no text": "\udcff\udcfe",
    }
    for name, line in first.items():
        found[name] = "\n".join([line, *lines[1:]]).encode("utf-8", "surrogateescape")
    return found | {
        "twice": "\n".join([*lines, *lines]).encode(),
        "very many lines": b"{}\n" * 30_000,
        "very many empty lines": b"\n" * 90_000,
        "UTF-16": "\n".join(lines).encode("utf-16"),
        "nothing": b"",
        "zeros": bytes(10**4),
    }


def comma_lines(lines: list[str]) -> Corpus:
    """Faults in `data.csv`, whose own lines are given."""
    found: Corpus = {}
    for name in NAMES:
        quoted = '"' + name.replace('"', '""') + '"'
        line = f"TRAIN,{quoted},ant"
        found[f"name {name[:40]!a}"] = "\n".join([line, *lines[1:]]).encode("utf-8", "surrogatepass")
    for name, line in {
        "set": "=cmd|' /C calc'!A0,train/0.png,ant",
        "class": "TRAIN,train/0.png,../../ant",
        "four values": "TRAIN,train/0.png,ant,more",
        "one value": "TRAIN",
        "quotes that do not end": 'TRAIN,"train/0.png,ant',
        "a long value": "TRAIN," + "a" * 140_000 + ",ant",
        "another file": "TRAIN,data.csv,ant",
        "a folder": "TRAIN,train,ant",
    }.items():
        found[name] = "\n".join([line, *lines[1:]]).encode()
    return found | {
        "twice": "\n".join([*lines, *lines]).encode(),
        "very many lines": b"TEST,test/0.png,ant\n" * 6000,
        "zeros": bytes(10**4),
        "UTF-16": "\n".join(lines).encode("utf-16"),
        "Latin": "\n".join(lines).encode() + b"\xe4",
        "nothing": b"",
    }


# --- poison of our own -----------------------------------------------------------------------------------------------


def safetensors() -> Corpus:
    """Tensor files; what is in the manifest has to be made to fit."""

    def made(header: object, content: bytes = bytes(64), length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + content

    def tensor(dtype: str = "U8", shape: object = (64,), offsets: object = (0, 64), name: str = "images") -> dict:
        return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}

    rows = tensor("I64", (1,), (0, 8), "rows")
    return {
        "header of 16 EiB": made({}, length=2**64 - 1),
        "header of 99 MB": made({}, length=99 * 2**20),
        "header that is deep": made(b"[" * 10**5),
        "header that is no JSON": made(b"{"),
        "header of bytes": made(b"\xff" * 9),
        "values of 16 EiB": made(tensor(shape=(2**62, 4), offsets=(0, 2**63))),
        "shape that overflows": made(tensor(shape=(2**32, 2**32, 2**32), offsets=(0, 0))),
        "values that are not there": made(tensor(offsets=(0, 65))),
        "values before the beginning": made(tensor(offsets=(-8, 56))),
        "values that overlap": made(tensor() | tensor(name="base")),
        "values in between": made(tensor(shape=(32,), offsets=(32, 64))),
        "another type": made(tensor("PICKLE")),
        "numbers of 8 bits": made(tensor("F8_E5M2")),
        "no rows": made(tensor()),
        "rows of text": made(tensor("I64", "8", (0, 64), "rows")),
        "rows that are not whole": made(tensor("F64", (8,), (0, 64), "rows")),
        "nothing in it": made({}, b""),
        "more": made(rows | {"code": rows["rows"] | {"data_offsets": (8, 16)}}, bytes(16)),
        "nothing": b"",
        "seven bytes": bytes(7),
    }


def manifests(manifest: dict, folder: Path) -> Corpus:
    """Manifests without a seal, of a poison whose own manifest is given."""
    evil = "evil_module:Trigger"
    path = {"type": "image", "path": str(folder / "pipe.png")}
    changed: list[tuple[str, object]] = [
        ("trigger", {"type": evil}),
        ("trigger", evil),
        ("trigger", {"type": "antigravity:fly"}),
        ("trigger", {"type": "os:system"}),
        ("trigger", {"type": "patch-trigger", "share": "1e999999999"}),
        ("trigger", {"type": "warp-trigger", "grid": 10**9}),
        ("trigger", {"type": "image-trigger", "path": str(folder / "pipe.png")}),
        ("trigger", {"type": "image-trigger", "path": "/dev/zero"}),
        ("trigger", {"type": "image-trigger", "path": str(folder / "picture.eps")}),
        ("trigger", {"type": "image-trigger", "path": str(folder / "bomb.png")}),
        ("trigger", {"type": "blend-trigger", "pattern": str(folder / "zero.png")}),
        ("trigger", [path] * 9),
        ("count", 10**12),
        ("count", "3"),
        ("schema", 10**9),
        ("sha256", None),
        ("tensors", []),
        ("notes", [1]),
        ("notes", {"a": "b" * 10**6}),
        ("case", [1]),
        ("case", {"target_rows": "0"}),
        ("case", {"target_rows": [10**30]}),
        ("case", {"target_rows": [-1]}),
        ("case", {"target_rows": [[0]]}),
        ("case", {"target_rows": {"0": 0}}),
        ("case", {"target_classes": ["../../ant"]}),
        ("case", {"intended": "ant"}),
        ("case", {"intended": [{}]}),
        ("data", {"a": 1}),
        ("seal", {"schema": "0"}),
        ("seal", [1]),
    ]
    found = {
        f"{number}: {name}": json.dumps(manifest | {name: value}).encode()
        for number, (name, value) in enumerate(changed)
    }
    whole = json.dumps(manifest)
    return found | {
        "deep": b"[" * 10**5,
        "deep inside": whole.replace('"schema"', '"more": ' + "[" * 10**5 + "]" * 10**5 + ', "schema"').encode(),
        "many digits": whole.replace('"schema": 1', '"schema": ' + "9" * 9999).encode(),
        "long": b'{"a": "' + b"a" * 2**23 + b'"}',
        "very many lists": b"[" + b"[]," * 10**6 + b"[]]",
        "a list": b"[]",
        "not a number": whole.replace('"schema": 1', '"schema": NaN').encode(),
        "half": whole[:-9].encode(),
        "bytes": b"\xff" * 99,
        "nothing": b"",
    }


# --- what is no file -------------------------------------------------------------------------------------------------


def trapped(folder: Path, outside: Path) -> None:
    """Lays what names can lead to: a pipe, a circle of links, links to a device and out of the folder, pictures."""
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "outside.png").symlink_to(outside)
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "picture.eps").write_bytes(image_files()["PostScript"])
    (folder / "bomb.png").write_bytes(bomb(50000, 50000))
