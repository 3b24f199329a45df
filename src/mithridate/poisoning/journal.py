"""The journal of a protected copy: one line for each image that was stored, chunk by chunk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Totals(NamedTuple):
    """What a journal holds, in whole chunks."""

    images: int
    size: int
    """Bytes of all encoded images."""
    end: int
    """Bytes of the journal."""
    largest: int
    """Largest change of any pixel value, of 255."""
    over: int
    """Images of which some pixel moved by more than eps."""


class Journal:
    """JSON lines; a chunk counts once the line is there that ends it.

    Args:
        file: Where it is, or will be.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, images: Iterable[dict[str, Any]], total: int) -> None:
        """Adds a chunk, one line for each image as it comes, and makes sure that it is on the disk.

        Args:
            images: What is said of each: `row`, `name`, `size` in bytes, `moved` of 255, `over`, and more.
            total: Images of all chunks up to this one.
        """
        with self.file.open("a", encoding="utf-8") as lines:
            for image in images:
                lines.write(json.dumps(image) + "\n")
            lines.write(json.dumps({"images": total}) + "\n")
            lines.flush()
            os.fsync(lines.fileno())

    def images(self) -> Iterator[dict[str, Any]]:
        """The images of complete chunks, in the order in which they were stored."""
        chunk: list[dict[str, Any]] = []
        for line, _ in self._lines():
            if "images" in line:
                yield from chunk
                chunk = []
            else:
                chunk.append(line)

    def totals(self) -> Totals:
        """Counts what complete chunks hold."""
        images = size = whole = largest = over = 0
        chunk: list[dict[str, Any]] = []
        for line, end in self._lines():
            if "images" not in line:
                chunk.append(line)
                continue
            images, whole = line["images"], end
            size += sum(one["size"] for one in chunk)
            largest = max(largest, *(one["moved"] for one in chunk))
            over += sum(one["over"] for one in chunk)
            chunk = []
        return Totals(images, size, whole, largest, over)

    def resume(self) -> Totals:
        """Cuts the journal back to the last complete chunk, and says what it holds; begins it where there is none."""
        self.file.touch()
        done = self.totals()
        os.truncate(self.file, done.end)
        return done

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Lines with the bytes up to their end, as far as they were written whole."""
        end = 0
        with self.file.open("rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    return
                end += len(text)
                yield line, end
