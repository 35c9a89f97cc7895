"""Reads the settings: environment, own file, Wings file, defaults; the first of them that has a value wins.

Every problem of every source is collected and reported at once, each by the path of its setting, so that an operator
corrects a configuration in one go. A secret's value is in no message, and errors of parsers that quote their input are
not chained.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import msgspec

from sidecar.errors import HostFailed
from sidecar.settings.checks import bus_contradictions, contradictions
from sidecar.settings.reading import FIELDS, SECTIONS, SERVER_FIELDS, Field, Problem, read
from sidecar.settings.values import NODE_ID_CHARS, Nats, Secret, ServerOverride, Settings
from sidecar.settings.wings import read_wings

PREFIX: Final = "SIDECAR_"
OWN_VARIABLES: Final = frozenset({"SIDECAR_CONFIG", "SIDECAR_WINGS_CONFIG"})  # options of the command line
DEFAULT: Final = "default"
_LOGIN: Final = frozenset({"token", "user", "password", "creds", "nkey_seed"})  # of [nats]
_SECRET_FILE_BYTES: Final = 65536  # a larger one is not a token but a mistake
_SERVER_VARIABLE: Final = re.compile(r"SERVERS_([0-9A-F]{8}(?:_[0-9A-F]{4}){3}_[0-9A-F]{12})_([A-Z_]+)")
# what Kubernetes puts into every pod beside a Service named "sidecar"
_SERVICE_LINK: Final = re.compile(r"SIDECAR_(SERVICE_(HOST|PORT).*|PORT(_[0-9]+_(TCP|UDP).*)?)")


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """The effective settings, and for each path (`node.token`) the source that it came from."""

    settings: Settings
    origins: dict[str, str]


class _Reader:
    """Fills in values from the strongest source to the weakest; what is there already is checked but not replaced."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {section: {} for section in FIELDS}
        self.servers: dict[str, dict[str, Any]] = {}
        self.origins: dict[str, str] = {}
        self.problems: list[str] = []

    def take(
        self, fields: Mapping[str, Field], into: dict[str, Any], raws: Mapping[str, tuple[Any, str]], *, prefix: str,
        is_text: bool, base: Path,
    ) -> None:  # fmt: skip
        """One section of one source. raws: key -> (raw value, where it stands)."""
        for key, (raw, origin) in raws.items():
            field = fields.get(key)
            in_file = fields.get(key.removesuffix("_file")) if key.endswith("_file") else None
            if field is None and (in_file is None or not in_file.may_be_file):
                names = [*fields, *(f"{name}_file" for name, known in fields.items() if known.may_be_file)]
                self.problems.append(f"{prefix}.{key}: there is no such setting{_suggest(key, names)} ({origin})")
                continue
            try:
                if field is not None:
                    value = read(field, raw, is_text=is_text, base=base)
                else:
                    assert in_file is not None
                    if in_file.name in raws:
                        raise Problem(f"{in_file.name} is set as well; give one of them")
                    field, secret = in_file, _secret_from_file(raw, base)
                    value = secret if field.is_secret else secret.reveal()
            except Problem as problem:
                self.problems.append(f"{prefix}.{key}: {problem} ({origin})")
                continue
            if field.name not in into:
                into[field.name] = value
                self.origins[f"{prefix}.{field.name}"] = origin

    def take_server(self, uuid: str, raws: Mapping[str, tuple[Any, str]], *, is_text: bool, base: Path) -> None:
        into = self.servers.setdefault(uuid, {})
        self.take(SERVER_FIELDS, into, raws, prefix=f"servers.{uuid}", is_text=is_text, base=base)


def load(config: Path | None = None, wings: Path | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    """The effective settings.

    Args: config: our TOML file, relative paths in it start from its directory; wings: a Wings `config.yml`; environ:
    the environment, for `SIDECAR_<SECTION>_<FIELD>`.
    Raises HostFailed (`settings.invalid`): the message has one line per problem, `<path>: <what is wrong> (<source>)`.
    """
    reader = _Reader()
    _take_environment(reader, environ or {})
    if config is not None:
        _take_file(reader, config)
    if wings is not None:
        _take_wings(reader, wings)
    _name_node(reader)
    sections: dict[str, msgspec.Struct] = {}
    for section, struct in SECTIONS.items():
        extra: dict[str, Any] = {}
        if section == "servers":
            extra["named"] = {uuid: ServerOverride(**given) for uuid, given in sorted(reader.servers.items())}
        sections[section] = struct(**reader.values[section], **extra)
    settings = Settings(**sections)  # type: ignore[arg-type]  # the sections are made from its own annotations
    _end_reading(reader.problems, contradictions(settings))
    origins = {f"{section}.{name}": DEFAULT for section, fields in FIELDS.items() for name in fields} | reader.origins
    return Loaded(settings=settings, origins=origins)


def load_nats(
    config: Path | None, environ: Mapping[str, str], options: Mapping[str, tuple[str, str]] | None = None
) -> Nats:
    """The section `[nats]` alone, for a program that is no node: what is wrong with the others does not matter to it.

    Args: config, environ: as for `load`; options: of the command line, key -> (text, name of the option), stronger than
    both. A login among them replaces the login of the others whole.
    Raises HostFailed (`settings.invalid`).
    """
    reader = _Reader()
    into = reader.values["nats"]
    given = {key: (text, f"option {name}") for key, (text, name) in (options or {}).items()}
    reader.take(FIELDS["nats"], into, given, prefix="nats", is_text=True, base=Path.cwd())
    is_login_given = bool(_LOGIN & {key.removesuffix("_file") for key in given})
    taken = set(into)
    _take_environment(reader, environ)
    if config is not None:
        _take_file(reader, config)
    for key in (_LOGIN & into.keys()) - taken if is_login_given else ():
        del into[key]
    others = tuple(f"{section}." for section in FIELDS if section != "nats")
    problems = [problem for problem in reader.problems if not problem.startswith(others)]
    nats = Nats(**into)
    if not nats.url:
        problems.append("nats.url: it must be set (--nats, SIDECAR_NATS_URL, or a configuration file with [nats])")
    _end_reading(problems, bus_contradictions(nats))
    return nats


def _end_reading(problems: list[str], contradictions: Iterable[tuple[str, str]]) -> None:
    """Raises HostFailed where anything is wrong."""
    # a value that could not be read is at its default here: what follows from that would only confuse
    unread = {problem.split(":", 1)[0].removesuffix("_file") for problem in problems}
    problems += [f"{path}: {text}" for path, text in contradictions if path not in unread]
    if problems:
        raise HostFailed("settings.invalid", "\n".join(problems), problems=len(problems))


def _take_environment(reader: _Reader, environ: Mapping[str, str]) -> None:
    base = Path.cwd()
    by_section: dict[str, dict[str, tuple[Any, str]]] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or variable in OWN_VARIABLES:
            continue
        rest = variable.removeprefix(PREFIX)
        origin = f"environment {variable}"
        server = _SERVER_VARIABLE.fullmatch(rest)
        if server is not None:
            uuid = server[1].replace("_", "-").lower()
            reader.take_server(uuid, {server[2].lower(): (text, origin)}, is_text=True, base=base)
            continue
        section, _, name = rest.lower().partition("_")
        if section in FIELDS and name:
            by_section.setdefault(section, {})[name] = (text, origin)
        elif _SERVICE_LINK.fullmatch(variable) is None:
            known = [field.variable for fields in FIELDS.values() for field in fields.values()]
            reader.problems.append(f"{variable}: there is no such setting{_suggest(variable, known)} (environment)")
    for section, raws in by_section.items():
        reader.take(FIELDS[section], reader.values[section], raws, prefix=section, is_text=True, base=base)


def _take_file(reader: _Reader, path: Path) -> None:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise HostFailed("settings.invalid", f"the file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise HostFailed("settings.invalid", f"the file {path} is not UTF-8 text") from None
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        where = re.search(r"\((at [^()]*)\)$", str(error))
        # the parser may quote what stands there, which may be a secret: only the place is shown, and nothing is chained
        place = f" ({where[1]})" if where else ""
        raise HostFailed("settings.invalid", f"the file {path} is not valid TOML{place}") from None
    origin = f"file {path}"
    base = path.absolute().parent
    for section, content in document.items():
        if section not in FIELDS:
            reader.problems.append(f"{section}: there is no such section{_suggest(section, FIELDS)} ({origin})")
            continue
        if not isinstance(content, dict):
            reader.problems.append(f"{section}: it must be a section, [{section}] ({origin})")
            continue
        raws = {key: (raw, origin) for key, raw in content.items()}
        if section == "servers":
            seen: set[str] = set()
            for key in [key for key, raw in content.items() if isinstance(raw, dict) and key not in FIELDS[section]]:
                table, _ = raws.pop(key)
                uuid = _uuid(key)
                if uuid is None or uuid in seen:
                    what = "the UUID of a server is needed" if uuid is None else "this server is there twice"
                    reader.problems.append(f"servers.{key}: {what} ({origin})")
                    continue
                seen.add(uuid)
                own = {name: (raw, origin) for name, raw in table.items()}
                reader.take_server(uuid, own, is_text=False, base=base)
        reader.take(FIELDS[section], reader.values[section], raws, prefix=section, is_text=False, base=base)


def _take_wings(reader: _Reader, path: Path) -> None:
    found, problems = read_wings(path)
    reader.problems += problems
    by_section: dict[str, dict[str, tuple[Any, str]]] = {}
    for ours, (key, raw) in found.items():
        section, _, name = ours.partition(".")
        by_section.setdefault(section, {})[name] = (raw, f"Wings file {path}, {key}")
    base = path.absolute().parent
    for section, raws in by_section.items():
        reader.take(FIELDS[section], reader.values[section], raws, prefix=section, is_text=False, base=base)


def _name_node(reader: _Reader) -> None:
    node = reader.values["node"]
    if not node.get("id") and node.get("name"):
        node["id"] = id_of_host(node["name"])
        reader.origins["node.id"] = f"made from node.name, {reader.origins['node.name']}"


def id_of_host(name: str) -> str:
    """The node id for a host name, always the same one, and for no two names the same.

    A host name has no `_` and no empty label, so the two forms do not meet; of names that are too long the digits of
    the SHA-256 tell one from another.
    """
    flat = name.replace(".", "_")
    if len(flat) <= NODE_ID_CHARS:
        return flat
    return f"{flat[:30]}__{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _secret_from_file(raw: object, base: Path) -> Secret:
    if not isinstance(raw, str) or not raw:
        raise Problem("it must be the path of a file")
    path = Path(base, raw)
    try:
        with path.open("rb") as file:
            content = file.read(_SECRET_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Problem(f"the file {path} cannot be read: {getattr(error, 'strerror', None) or 'bad path'}") from None
    if len(content) > _SECRET_FILE_BYTES:
        raise Problem(f"the file {path} is larger than {_SECRET_FILE_BYTES} bytes")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise Problem(f"the file {path} is not UTF-8 text") from None
    if not text or not text.isprintable():
        raise Problem(f"the file {path} is empty, or more than one line")
    return Secret(text)


def _uuid(text: str) -> str | None:
    try:
        value = str(UUID(text))
    except ValueError:
        return None
    return value if value == text.lower() else None


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
