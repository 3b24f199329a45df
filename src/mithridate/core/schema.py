"""Settings in and out of JSON: every choice is a frozen dataclass, tagged with the name people type.

A *choice family* is an abstract class (``Attack``, ``Ball``, ``Sampler`` ...) that inherits from ``Choice``; its
members are frozen dataclasses whose fields are the settings. Members that live in a folder of their own are named by
their file (``poisoning/attacks/witches_brew.py`` is ``witches-brew``), others by their class (``AnyImage`` is
``any-image``), and members outside this package by ``module:Class``.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import math
import operator
import pkgutil
import re
import types
import typing
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import cattrs

from mithridate.core.distrust import check_import
from mithridate.core.imports import resolve as resolve
from mithridate.core.spelling import nearest as nearest, split as _split, spoken

SCHEMA = 1
"""Version of everything written to disk; part of every identity."""

T = TypeVar("T")


class Choice:
    """Marks an abstract family of settings (``class Ball(Choice, ABC)``).

    >>> from mithridate.core.balls import Linf
    >>> issubclass(Linf, Choice)
    True
    """

    home: ClassVar[str] = ""
    """Module, or package with one file per member, where the members live; empty: the family's own module."""
    listed: ClassVar[bool] = True
    """Whether a class is offered by name; one that needs a function of the user's is written `module:Class` instead."""


def _import_home(base: type) -> str:
    home = getattr(base, "home", "") or base.__module__
    module = importlib.import_module(home)
    for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
        importlib.import_module(f"{home}.{found.name}")
    return home


def _family(base: type[T]) -> collections.abc.Iterator[type[T]]:
    yield base
    for child in base.__subclasses__():
        yield from _family(child)


def _in_package(cls: type) -> bool:
    return cls.__module__.split(".")[0] == __name__.split(".")[0] and getattr(cls, "listed", True)


def _is_member(cls: type) -> bool:
    return _in_package(cls) and not inspect.isabstract(cls) and dataclasses.is_dataclass(cls)


def name_of(choice: Any) -> str:
    """Returns the name of a choice (an instance or its class), as the CLI and JSON spell it.

    >>> from mithridate.core.balls import AnyImage
    >>> name_of(AnyImage), name_of(AnyImage())
    ('any-image', 'any-image')
    """
    cls = choice if isinstance(choice, type) else type(choice)
    if not _in_package(cls):
        return f"{cls.__module__}:{cls.__qualname__}"
    if cls.__module__.rpartition(".")[0] == getattr(cls, "home", ""):
        return cls.__module__.rpartition(".")[2].replace("_", "-")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()


def choices(base: type[T]) -> dict[str, type[T]]:
    """Returns every member of a choice family by name, those of installed plug-ins included.

    Plug-ins announce a class under the entry-point group ``mithridate.<family>``, for example ``mithridate.attack``.

    >>> from mithridate.core.schedules import Schedule
    >>> list(choices(Schedule))
    ['cosine', 'one-cycle', 'step-decay']
    """
    _import_home(base)
    found = {name_of(cls): cls for cls in _family(base) if _is_member(cls)}
    for entry in importlib.metadata.entry_points(group=f"{__name__.split('.')[0]}.{base.__name__.lower()}"):
        found[entry.name] = entry.load()
    return dict(sorted(found.items()))


# --- out -------------------------------------------------------------------------------------------------------------


def _function(function: collections.abc.Callable) -> dict[str, Any]:
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = repr(type(function))
    name = getattr(function, "__qualname__", None)
    if name is None or (inspect.ismethod(function) and not isinstance(function.__self__, type)):
        name = f"<{type(function).__qualname__}>"  # a partial, an object with __call__: no name says its state
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    return {"function": f"{getattr(function, '__module__', '?')}:{name}", "source": digest}


def resumable(value: Any) -> bool:
    """Tells whether a setting can be read back in another process: a lambda or a local function cannot.

    >>> resumable(resolve), resumable(lambda: 0)
    (True, False)
    """
    return "<" not in json.dumps(to_json(value))


def _path_content(path: Path) -> str:
    if path.is_dir():
        from mithridate.core.image_files import image_files  # now: it brings torch

        return "sha256:" + hashlib.sha256("".join(map(_path_content, image_files(path))).encode()).hexdigest()
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def to_json(value: Any, path: collections.abc.Callable[[Path], str] = str) -> Any:
    """Turns settings into plain JSON values; choices carry their name as ``type``.

    >>> from mithridate.core.balls import Linf
    >>> to_json(Linf(eps=0.25))
    {'type': 'linf', 'eps': 0.25}

    Raises:
        TypeError: a value that is no setting, such as a tensor.
    """
    inner = functools.partial(to_json, path=path)
    if isinstance(value, Path):
        return path(value)
    if hasattr(value, "json_settings"):
        return {"type": name_of(value), **inner(value.json_settings())}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tag = {"type": name_of(value)} if isinstance(value, Choice) else {}
        return {**tag, **{f.name: inner(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}}
    if isinstance(value, dict):
        return {str(key): inner(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [inner(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        return _function(value)
    raise TypeError(f"{type(value).__name__} is no setting: settings are numbers, text, paths, tuples and dataclasses")


def identity(value: Any) -> str:
    """Returns the content address of settings: equal work has an equal identity, whatever the paths of files.

    >>> identity({"a": 1}) == identity({"a": 1}), identity({"a": 1}) == identity({"a": 2})
    (True, False)
    """
    content = json.dumps([SCHEMA, to_json(value, _path_content)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


# --- in --------------------------------------------------------------------------------------------------------------


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, str):
        try:
            value = float(value) if "e" in value.lower() else Fraction(value)  # 1e99999999 has as many digits
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is not a number") from None
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction)):
        raise ValueError(f"{value!r} is not a number")
    if kind is int and (not math.isfinite(value) or value != int(value)):
        raise ValueError(f"{value!s} is not a whole number")
    return kind(value)


def _boolean(value: Any, _: type) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no"):
        return value.lower() in ("true", "yes")
    if isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is neither true nor false")


def _text(value: Any, _: type) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not text")


def _option(value: Any, kind: Any) -> Any:
    options = typing.get_args(kind)
    if value in options:
        return value
    raise ValueError(f"{value!r} is no option; {nearest(str(value), map(str, options))}")


def _structure_dataclass(data: Any, cls: type) -> Any:
    """Builds a dataclass from its settings; an unknown setting is an error that names the nearest one."""
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    label = name_of(cls) if issubclass(cls, Choice) else cls.__name__
    if not isinstance(data, dict):
        raise ValueError(f"{label}: expected its settings, got {data!r}")
    hints = typing.get_type_hints(cls)
    settings = {}
    for key, value in data.items():
        if key not in fields:
            raise ValueError(f"{label} has no setting {key!r}; {nearest(key, fields)}")
        try:
            settings[key] = _converter.structure(value, hints[key])
        except (ValueError, TypeError, cattrs.BaseValidationError) as error:
            raise ValueError(f"{label}: {key}: {error}") from error
    missing = [
        name
        for name, field in fields.items()
        if name not in settings
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{label} needs {', '.join(missing)}")
    return cls(**settings)


def class_of(base: type[T], name: str) -> type[T]:
    """Finds the member of a family by name, or by ``module:Class``.

    Raises:
        ValueError: no such member; the message names the nearest one.

    >>> from mithridate.core.balls import Ball
    >>> class_of(Ball, "any-image").__name__
    'AnyImage'
    """
    if ":" in name:
        found = resolve(name)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ValueError(f"{name!r} is no {spoken(base)}; it must name a subclass of {base.__name__}")
        return found
    known = choices(base)
    if name not in known:
        raise ValueError(f"no {spoken(base)} is called {name!r}; {nearest(name, known)}")
    return known[name]


def _structure_choice(data: Any, base: type) -> Any:
    if isinstance(data, str):
        return parse(base, data)
    if not isinstance(data, dict):
        raise ValueError(f"expected a {spoken(base)} by name or with its settings, got {data!r}")
    data = dict(data)
    name = data.pop("type", None)
    if name is None and not inspect.isabstract(base):
        return _structure_dataclass(data, base)
    if not isinstance(name, str):
        raise ValueError(f"a {spoken(base)} needs its 'type'; {nearest('', choices(base))}")
    cls = class_of(base, name)
    if hasattr(cls, "from_json_settings"):
        return cls.from_json_settings(data)
    return _structure_dataclass(data, cls)


def _structure_function(data: Any, _: Any) -> Any:
    check_import(str(data), function=True)
    return resolve(data["function"]) if isinstance(data, dict) else data


def _is_function(kind: Any) -> bool:
    return typing.get_origin(kind) is collections.abc.Callable or (
        typing.get_origin(kind) in (typing.Union, types.UnionType)
        and any(typing.get_origin(arm) is collections.abc.Callable for arm in typing.get_args(kind))
    )


def _optional(kind: Any) -> type | None:
    arms = [arm for arm in typing.get_args(kind) if arm is not type(None)]
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return arms[0] if is_union and len(arms) == 1 and isinstance(arms[0], type) else None


def _several(kind: Any) -> bool:
    """Whether a kind is tuple[C, ...] of choices C."""
    member, *more = typing.get_args(kind) or (None,)
    return more == [...] and isinstance(member, type) and issubclass(member, Choice)


def _structure_several(data: Any, kind: Any) -> tuple:
    parts = _split(data, "+") if isinstance(data, str) else data
    return tuple(_converter.structure(part, typing.get_args(kind)[0]) for part in parts)


def _fixed(kind: Any) -> bool:
    """Whether a kind is a tuple of a fixed length."""
    return typing.get_origin(kind) is tuple and ... not in typing.get_args(kind)


def _structure_fixed(data: Any, kind: Any) -> tuple:
    """Typed with two dots between the parts: 0.1..0.4."""
    parts, kinds = data.split("..") if isinstance(data, str) else data, typing.get_args(kind)
    if len(parts) != len(kinds):
        raise ValueError(f"expected {len(kinds)} values, typed with two dots between them (0.1..0.4), got {data!r}")
    return tuple(_converter.structure(part, one) for part, one in zip(parts, kinds, strict=True))


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False)
    for kind, hook in {int: _number, float: _number, bool: _boolean, str: _text}.items():
        converter.register_structure_hook(kind, hook)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    converter.register_structure_hook_func(_is_function, _structure_function)
    converter.register_structure_hook_func(_several, _structure_several)
    converter.register_structure_hook_func(_fixed, _structure_fixed)
    converter.register_structure_hook_func(lambda kind: typing.get_origin(kind) is typing.Literal, _option)
    converter.register_structure_hook_func(
        lambda kind: isinstance(kind, type) and dataclasses.is_dataclass(kind), _structure_dataclass
    )
    converter.register_structure_hook_func(
        lambda kind: isinstance(kind, type) and issubclass(kind, Choice), _structure_choice
    )

    def structure_optional(value: Any, kind: Any) -> Any:
        inner: Any = _optional(kind)
        return None if value is None else converter.structure(value, inner)

    converter.register_structure_hook_func(lambda kind: _optional(kind) is not None, structure_optional)
    return converter


_converter = _make_converter()


def from_json(data: Any, kind: type[T]) -> T:
    """Builds settings from JSON values; the inverse of ``to_json``.

    Numbers may be written as fractions (``"8/255"``).

    Raises:
        ValueError: an unknown type or setting (the message names the nearest), or a value of the wrong kind.

    >>> from mithridate.core.balls import Ball
    >>> from_json({"type": "l2", "eps": 0.5}, Ball)
    L2(eps=0.5)
    """
    return _converter.structure(data, kind)


def parse(base: type[T], text: str) -> T:
    """Builds a choice from what people type: ``name``, ``name:setting=value,...`` or ``name(setting=value,...)``.

    Choices that can be added are written with a plus: ``linf:eps=8/255+patch``.

    >>> from mithridate.core.balls import Ball
    >>> parse(Ball, "linf:eps=8/255").eps == 8 / 255
    True

    Raises:
        ValueError: as for ``from_json``, or a part that is no ``setting=value``.
    """
    parts = _split(text, "+")
    if len(parts) > 1 and hasattr(base, "__add__"):
        found: list[Any] = [parse(base, part) for part in parts]
        return functools.reduce(operator.add, found)
    match = re.fullmatch(r"([\w-]+)(?::(.*)|\((.*)\))?", text.strip(), re.DOTALL)
    if match is None:
        return _structure_choice({"type": text}, base)
    settings = {}
    for part in _split(match[2] or match[3] or ""):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: {part!r} is no setting; write {match[1]}:setting=value,setting=value")
        settings[key.strip().replace("-", "_")] = None if value.strip() == "none" else value.strip()
    return _structure_choice({"type": match[1], **settings}, base)
