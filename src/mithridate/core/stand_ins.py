"""What stands in for classes and functions that a pickle names: takes their state, checks it, calls nothing else."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Maker = Callable[..., Any]
Allowed = Mapping[tuple[str, str], Maker]
"""(module, name) -> what is called in its place."""

_LENGTH = 2**40
"""Of one axis at most: more fits in no file that is read."""
_AXES = 8


@dataclass(frozen=True, eq=False)
class Named:
    """A class or function that a pickle named, before anything is made of it."""

    module: str
    name: str
    maker: Maker


class StandIn(ABC):
    """Something that a pickle makes in steps."""

    def set_state(self, state: Any, pixels: int) -> None:
        """Takes what the pickle says of it.

        Args:
            state: Plain values and other stand-ins.
            pixels: Of one image at most.

        Raises:
            ValueError: By default always.
        """
        raise ValueError(f"sets the state of something that has none ({type(self).__name__.strip('_')})")

    @abstractmethod
    def value(self) -> Any:
        """Returns what takes its place, once everything is read.

        Raises:
            ValueError: It is incomplete, or no value at all.
        """


def shown(value: Any) -> str:
    """Returns a value for a message: short, whatever it is, and without looking into what a stranger nested.

    >>> shown((2, 3)), shown([[]]), shown("a" * 99)[-4:]
    ('(2, 3)', 'a list', "...'")
    """
    if isinstance(value, (str, bytes)):
        return repr(value[:40]) if len(value) <= 40 else f"{value[:40]!r}"[:-1] + "...'"
    if isinstance(value, (bool, int, float)) or value is None:
        return str(value)
    if isinstance(value, tuple) and len(value) <= _AXES and all(type(part) is int for part in value):
        return str(value)
    return f"a {type(value).__name__.strip('_')}"


# --- numpy -----------------------------------------------------------------------------------------------------------

_NUMBERS = frozenset(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)) | {"f2", "f4", "f8", "b1"}


class _Kind(StandIn):
    """numpy.dtype."""

    def __init__(self, name: Any, *_: Any) -> None:
        plain = name.lstrip("<|=") if isinstance(name, str) else ""
        if plain not in _NUMBERS:
            raise ValueError(f"holds an array of {shown(name)}; expected plain numbers of up to 8 bytes")
        self.dtype = np.dtype("<" + plain)

    def set_state(self, state: Any, pixels: int) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise ValueError("holds an array of several fields; expected plain numbers")
        if type(state[1]) is not str or state[1] not in "<>|=":
            raise ValueError(f"holds an array of the byte order {shown(state[1])}; expected <, > or |")
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")

    def value(self) -> Any:
        raise ValueError("holds a type of numbers where a value was expected")


class _Array(StandIn):
    """numpy.ndarray."""

    def __init__(self) -> None:
        self.found: np.ndarray | None = None

    def set_state(self, state: Any, pixels: int) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("holds an array whose state is not that of numpy")
        _, shape, kind, fortran, content = state
        self.found = _filled(shape, kind, content, "F" if fortran is True else "C")

    def value(self) -> np.ndarray:
        if self.found is None:
            raise ValueError("holds an array without values")
        return self.found


def _filled(shape: Any, kind: Any, content: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(kind, _Kind):
        raise ValueError("holds an array without a type of numbers")
    if not isinstance(content, (bytes, bytearray)):
        raise ValueError(f"holds an array of {type(content).__name__} objects; expected the bytes of plain numbers")
    if not lengths(shape) or type(order) is not str or order not in ("C", "F"):
        raise ValueError(f"holds an array of shape {shown(shape)}; expected up to {_AXES} lengths")
    expected = math.prod(shape) * kind.dtype.itemsize
    if expected != len(content):
        raise ValueError(f"holds an array of shape {shape} with {len(content):,} bytes; expected {expected:,}")
    if kind.dtype == np.bool_ and np.frombuffer(content, np.uint8).max(initial=0) > 1:
        raise ValueError("holds truth values that are neither 0 nor 1")
    values = np.frombuffer(content, kind.dtype).reshape(shape, order=order)
    return values.astype(kind.dtype.newbyteorder("="), copy=False)


def lengths(shape: Any) -> bool:
    """Whether these are lengths of axes that an array in a file can have."""
    whole = isinstance(shape, tuple) and len(shape) <= _AXES
    return whole and all(type(length) is int and 0 <= length < _LENGTH for length in shape)


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if not isinstance(kind, Named) or kind.name != "ndarray":
        raise ValueError("holds an array of a class of its own; expected numpy.ndarray")
    return _Array()


def _array(shape: Any, kind: Any, content: Any = None, *_: Any) -> _Array:
    found = _Array()
    found.found = _filled(shape, kind, content)
    return found


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any = "C", axes: Any = None) -> _Array:
    found, kept = _Array(), order == "K" and isinstance(axes, tuple)
    found.found = _filled(shape, kind, content, "C" if kept else order)
    if kept:
        found.found = found.found.transpose(axes)
    return found


def _scalar(kind: Any, content: Any) -> int | float | bool:
    return _filled((), kind, content).item()


def _encoded(text: Any, codec: Any = "") -> bytes:
    """How old pickles write bytes: text, each letter a byte."""
    if not isinstance(text, str) or type(codec) is not str or codec not in ("latin1", "latin-1"):
        raise ValueError("encodes text in another way than bytes are written")
    return text.encode("latin1")


def _bytes(content: Any = b"", codec: Any = None) -> bytes:
    if codec is not None:
        return _encoded(content, codec)
    if not isinstance(content, bytes):
        raise ValueError("makes bytes of something else")
    return content


# --- images ----------------------------------------------------------------------------------------------------------

_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4, "P": 1}


@dataclass(frozen=True, eq=False)
class Picture:
    """A Pillow image, as it was pickled: checked, and never given to Pillow."""

    mode: str
    """L, RGB, RGBA or P."""
    size: tuple[int, int]
    """Width and height."""
    content: bytes
    palette: bytes = b""
    """Red, green, blue of each colour number; only of P."""

    def tensor(self, shape: tuple[int, int, int]) -> Tensor:
        """Returns the image as uint8 [C, H, W]; a grey image of colour data becomes colour.

        >>> Picture("L", (2, 1), bytes([7, 8])).tensor((3, 1, 2))[2].tolist()
        [[7, 8]]

        Raises:
            ValueError: It is not of this shape, or can be seen through.
        """
        channels, height, width = shape
        if self.size != (width, height):
            seen = f"{self.size[0]}x{self.size[1]}"
            raise ValueError(f"the image is {seen} pixels, the images of the data {width}x{height}")
        pixels = np.frombuffer(self.content, np.uint8).reshape(height, width, _CHANNELS[self.mode])
        if self.mode == "P":
            colours = np.zeros(768, np.uint8)
            colours[: len(self.palette)] = np.frombuffer(self.palette, np.uint8)
            pixels = colours.reshape(256, 3)[pixels[:, :, 0]]
        if self.mode == "RGBA":
            if pixels[:, :, 3].min(initial=255) < 255:
                raise ValueError("the image can be seen through; expected one without transparency")
            pixels = pixels[:, :, :3]
        if pixels.shape[2] == 1 < channels:
            pixels = pixels.repeat(channels, 2)
        if pixels.shape[2] != channels:
            raise ValueError(f"the image is of mode {self.mode}; the images of the data have {channels} channels")
        return torch.tensor(pixels).permute(2, 0, 1).contiguous()


class _Image(StandIn):
    """PIL.Image.Image and its subclasses."""

    def __init__(self) -> None:
        self.found: Picture | None = None

    def set_state(self, state: Any, pixels: int) -> None:
        if not isinstance(state, (list, tuple)) or len(state) < 5:
            raise ValueError("holds an image whose state is not that of Pillow")
        mode, size, palette, content = state[1:5]
        if not isinstance(mode, str) or mode not in _CHANNELS:
            raise ValueError(f"holds an image of mode {shown(mode)}; expected {', '.join(_CHANNELS)}")
        if not lengths(size) or len(size) != 2 or not 0 < math.prod(size) <= pixels:
            raise ValueError(f"holds an image of size {shown(size)}; expected at most {pixels:,} pixels")
        expected = math.prod(size) * _CHANNELS[mode]
        if not isinstance(content, bytes) or len(content) != expected:
            seen = f"{len(content):,}" if isinstance(content, bytes) else f"{type(content).__name__} instead of"
            raise ValueError(f"holds an image {mode} of {size[0]}x{size[1]} with {seen} bytes; expected {expected:,}")
        self.found = Picture(mode, size, content, _palette(palette) if mode == "P" else b"")

    def value(self) -> Picture:
        if self.found is None:
            raise ValueError("holds an image without pixels")
        return self.found


def _palette(colours: Any) -> bytes:
    if (
        isinstance(colours, list)
        and len(colours) <= 768
        and all(type(one) is int and 0 <= one < 256 for one in colours)
    ):
        colours = bytes(colours)
    if not isinstance(colours, bytes) or len(colours) > 768 or len(colours) % 3:
        raise ValueError("holds an image with a palette that is no list of up to 256 colours")
    return colours


def _object(*_: Any) -> Any:
    raise ValueError("makes a bare object, which no data need")


def _reconstructor(kind: Any, base: Any, state: Any) -> _Image:
    """How pickles of the first two protocols make an image."""
    named = isinstance(kind, Named) and isinstance(base, Named)
    if not named or kind.maker is not _Image or base.maker is not _object or state is not None:
        raise ValueError("makes something else than an image in the way of old pickles")
    return _Image()


# --- torch -----------------------------------------------------------------------------------------------------------

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Storage(StandIn):
    """Values of a tensor, which the file has elsewhere."""

    def __init__(self, key: str, kind: str, count: int, load: Callable[[str], bytes]) -> None:
        self.key, self.kind, self.dtype, self.count, self.load = key, kind, _DTYPES[kind], count, load
        self.found: Tensor | None = None

    def flat(self) -> Tensor:
        """Returns the values [count], the same ones each time.

        Raises:
            ValueError: There are fewer or more.
        """
        if self.found is None:
            self.found = self._read()
        return self.found

    def _read(self) -> Tensor:
        content = self.load(self.key)
        if len(content) != self.count * self.dtype.itemsize:
            raise ValueError(
                f"holds values {self.key!r} of {len(content):,} bytes; expected {self.count:,} of {self.dtype.itemsize}"
            )
        if not content:
            return torch.empty(0, dtype=self.dtype)
        if self.dtype == torch.bool and max(content) > 1:
            raise ValueError("holds truth values that are neither 0 nor 1")
        return torch.frombuffer(bytearray(content), dtype=self.dtype)

    def value(self) -> Any:
        raise ValueError("holds bare storage; expected a tensor")


class _Tensor(StandIn):
    """A tensor: where in a storage it lies."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        fits = isinstance(storage, Storage) and lengths((offset,)) and lengths(size) and lengths(stride)
        if not fits or len(size) != len(stride):
            raise ValueError("holds a tensor of odd shape")
        count = math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        # A view may repeat one value as often as it likes: nobody saves such a thing, and a copy of it has no limit.
        if count and (last >= storage.count or count > storage.count):
            raise ValueError(f"holds a tensor {shown(size)} of {storage.count:,} values")
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def value(self) -> Tensor:
        flat = self.storage.flat()
        if not math.prod(self.size):
            return torch.empty(self.size, dtype=flat.dtype)
        return flat.as_strided(self.size, self.stride, self.offset)


def _parameter(tensor: Any, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise ValueError("holds a parameter that is no tensor")
    return tensor


def _ordered(*content: Any) -> OrderedDict[Any, Any]:
    if content:
        raise ValueError("makes a dictionary in another way than torch does")
    return OrderedDict()


def _storage(*_: Any) -> Any:
    raise ValueError("makes storage without values")


def is_storage(named: Any) -> bool:
    """Whether this names a type of storage."""
    return isinstance(named, Named) and named.maker is _storage


# --- what may be named -----------------------------------------------------------------------------------------------

_RAW: dict[tuple[str, str], Maker] = {
    ("_codecs", "encode"): _encoded,
    **{(module, name): _bytes for module in ("builtins", "__builtin__") for name in ("bytes", "bytearray")},
}
NUMPY: Allowed = {
    **_RAW,
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _array,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}
"""Arrays and numbers of numpy 1 and 2; numbers become those of Python."""
PICTURES: Allowed = {
    **_RAW,
    ("PIL.Image", "Image"): _Image,
    ("PIL.PngImagePlugin", "PngImageFile"): _Image,
    ("PIL.JpegImagePlugin", "JpegImageFile"): _Image,
    **{(module, "_reconstructor"): _reconstructor for module in ("copyreg", "copy_reg")},
    **{(module, "object"): _object for module in ("builtins", "__builtin__")},
}
"""Pillow images, which become `Picture`."""
STORAGES: Allowed = {("torch", name): _storage for name in _DTYPES}
"""Types of what is stored of tensors."""
TENSORS: Allowed = {
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): _ordered,
    **STORAGES,
}
"""Tensors and parameters of plain numbers, which become tensors on the CPU, and the dictionaries that hold them."""
EVERYTHING: Allowed = {**NUMPY, **PICTURES, **TENSORS}
"""All of these."""
