"""The schema of the settings, taken from `values`, and the reading of one value by it.

`FIELDS` is made from the annotations of the sections, so that the loader, the table and `config check` cannot disagree.
A value comes either typed (TOML, YAML) or as text (environment); both end as the field's own type or as a `Problem`,
whose text never holds a secret's value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec

from sidecar.settings.values import Owner, Secret, ServerOverride, Settings

_SHOWN_CHARACTERS: Final = 60  # of a wrong value, in an error
_ID_MAX: Final = 2**32 - 2  # of a user or group; the highest number means "no change" to chown
_INT_LIMIT: Final = 2**63  # TOML's own bound
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?")
_TRUE: Final = frozenset({"true", "1", "yes", "on"})
_FALSE: Final = frozenset({"false", "0", "no", "off"})


class Problem(Exception):
    """One value cannot be used. The text stands after its path: `12 is not between 0 and 9`."""


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One setting: `section.name`, its type without `Annotated` and `None`, its bounds, default and meaning."""

    section: str
    name: str
    type: Any
    meta: msgspec.Meta
    default: Any
    is_optional: bool  # whether an empty text means "not set"

    @property
    def path(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """The name of its environment variable."""
        return f"SIDECAR_{self.section}_{self.name}".upper()

    @property
    def description(self) -> str:
        return self.meta.description or ""

    @property
    def is_secret(self) -> bool:
        return self.type is Secret

    @property
    def may_be_file(self) -> bool:
        """Whether `<name>_file` is a setting too."""
        return self.is_secret or bool((self.meta.extra or {}).get("from_file"))


def _fields_of(section: str, struct: type[msgspec.Struct]) -> Iterator[Field]:
    hints = get_type_hints(struct, include_extras=True)
    for info in msgspec.structs.fields(struct):
        hint = hints[info.name]
        if get_origin(hint) is not Annotated:
            continue  # the tables of single servers are not a field
        kind, meta = get_args(hint)[:2]
        is_optional = get_origin(kind) in (Union, UnionType)
        if is_optional:
            kind = next(choice for choice in get_args(kind) if choice is not NoneType)
        yield Field(
            section=section, name=info.name, type=kind, meta=meta, default=info.default, is_optional=is_optional
        )


SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    name: hint for name, hint in get_type_hints(Settings).items() if isinstance(hint, type)
}
FIELDS: Final[dict[str, dict[str, Field]]] = {
    section: {field.name: field for field in _fields_of(section, struct)} for section, struct in SECTIONS.items()
}
SERVER_FIELDS: Final[dict[str, Field]] = {field.name: field for field in _fields_of("servers.<uuid>", ServerOverride)}


def read(field: Field, raw: object, *, is_text: bool, base: Path) -> Any:
    """The value of a field.

    Args: raw: as TOML or YAML typed it, or the text of a variable where `is_text`; base: the directory that a relative
    path starts from.
    Raises Problem.
    """
    kind = field.type
    if get_origin(kind) is tuple:
        element = get_args(kind)[0]
        items = _split(raw) if is_text else raw
        if not isinstance(items, list):
            raise Problem(f"{_shown(raw)} is not a list")
        values = tuple(_read_one(element, item, is_text=is_text, base=base) for item in items)
        if isinstance(element, type) and issubclass(element, StrEnum) and not values:
            raise Problem("at least one is needed")
        return values
    value = _read_one(kind, raw, is_text=is_text, base=base)
    if value is None and not field.is_optional:
        raise Problem("it must not be empty")
    _check_bounds(field, value)
    return value


def _split(raw: object) -> list[str]:
    return [item.strip() for item in str(raw).split(",") if item.strip()]


def _read_one(kind: Any, raw: object, *, is_text: bool, base: Path) -> Any:
    if kind is Secret:
        return _secret(raw)
    if kind is bool:
        return _bool(raw, is_text=is_text)
    if kind is int:
        return _int(raw, is_text=is_text)
    if kind is float:
        return _float(raw, is_text=is_text)
    if not isinstance(raw, str):
        raise Problem(f"{_shown(raw)} is not text")
    if any(ord(character) < 32 or character == "\x7f" for character in raw):
        raise Problem("control characters are not allowed")
    if kind is str:
        return raw
    if kind is Path:
        return Path(base, raw) if raw else None
    if kind is Owner:
        return _owner(raw)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        try:
            return kind(raw)
        except ValueError:
            raise Problem(f"{_shown(raw)} is not one of {', '.join(kind)}") from None
    raise TypeError(f"no reader for {kind}")  # a field of a new kind: a bug, found by the first test


def _secret(raw: object) -> Secret:
    if not isinstance(raw, str):
        raise Problem("it is not text")
    if not raw.isprintable() or raw != raw.strip():
        raise Problem("it has white space around it, or unprintable characters")
    return Secret(raw)


def _bool(raw: object, *, is_text: bool) -> bool:
    if isinstance(raw, bool):
        return raw
    if is_text and isinstance(raw, str) and raw.lower() in _TRUE | _FALSE:
        return raw.lower() in _TRUE
    raise Problem(f"{_shown(raw)} is not true or false")


def _int(raw: object, *, is_text: bool) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if abs(raw) >= _INT_LIMIT:
            raise Problem("the number is too large")
        return raw
    if is_text and isinstance(raw, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", raw):
        return int(raw)
    raise Problem(f"{_shown(raw)} is not a whole number")


def _float(raw: object, *, is_text: bool) -> float:
    is_number = isinstance(raw, (int, float)) and not isinstance(raw, bool)
    if not is_number and not (is_text and isinstance(raw, str) and _NUMBER.fullmatch(raw)):
        raise Problem(f"{_shown(raw)} is not a number")
    if isinstance(raw, int) and abs(raw) >= _INT_LIMIT:
        raise Problem("the number is too large")
    value = float(raw)  # type: ignore[arg-type]  # a number, or the text of one
    if not math.isfinite(value):
        raise Problem(f"{value} is not a finite number")
    return value


def _owner(raw: str) -> Owner | None:
    if not raw:
        return None
    match = re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", raw)
    if match is None or any(int(number) > _ID_MAX for number in match.groups()):
        raise Problem(f"{_shown(raw)} is not a pair of numeric ids such as 988:988")
    return Owner(int(match[1]), int(match[2]))


def _check_bounds(field: Field, value: Any) -> None:
    meta = field.meta
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        wrong = (
            (meta.ge is not None and value < meta.ge)
            or (meta.gt is not None and value <= meta.gt)
            or (meta.le is not None and value > meta.le)
        )
        if wrong:
            raise Problem(f"{value:{'g' if isinstance(value, float) else 'd'}} is not {bounds(meta)}")
    if isinstance(value, str):
        if meta.min_length is not None and len(value) < meta.min_length:
            raise Problem("it must not be empty")
        if meta.pattern is not None and value and re.fullmatch(meta.pattern, value) is None:
            raise Problem(f"{_shown(value)} does not match {meta.pattern}")


def bounds(meta: msgspec.Meta) -> str:
    """`between 0 and 9`, `at least 1`, `above 0`, `above 0 and at most 300`, or nothing."""
    if meta.ge is not None and meta.le is not None:
        return f"between {meta.ge} and {meta.le}"
    parts = []
    if meta.ge is not None:
        parts.append(f"at least {meta.ge}")
    if meta.gt is not None:
        parts.append(f"above {meta.gt}")
    if meta.le is not None:
        parts.append(f"at most {meta.le}")
    return " and ".join(parts)


def _shown(raw: object) -> str:
    """A wrong value for a message; what may hold a password (`user:password@host`) is left out."""
    if isinstance(raw, Mapping):
        return "a table"
    if isinstance(raw, list):
        return "a list"
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, str):
        if "@" in raw:
            return "the text"
        return repr(raw if len(raw) <= _SHOWN_CHARACTERS else raw[:_SHOWN_CHARACTERS] + "...")
    return str(raw)[:_SHOWN_CHARACTERS]
