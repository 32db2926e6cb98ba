"""Catalogues: YAML files of named stanzas, each checked against a schema when it is first used.

A schema is `str` (text that is not empty), `float` (a number above 0), a range (a whole number in it),
`object` (anything), a pattern (text that it matches), a tuple (one of these texts), `[schema]` (a list of one
or more), `Keys` (a mapping), or a function from a value to its schema. Imports no torch: planning reads
catalogues.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import yaml

from ... import include
from ...errors import UsageError, unknown

Schema = object
Stanza = dict[str, Any]
COUNT = range(1, 10**12)
NAME = r"[\w+-][\w.+-]*"  # of a stanza: it stands in paths


class Keys(NamedTuple):
    """A mapping from texts.

    Without `required` and `optional` keys: one or more keys of any name, each value of the schema `each`.
    """

    required: Mapping[str, Schema] = {}
    optional: Mapping[str, Schema] = {}
    each: Schema = None


class Catalogue:
    """The stanzas of one YAML file by name, and those of the files of that name in the included folders.

    Args:
        file: for instance tasks.yaml; its name says what a stanza is called in errors ("task").
        schema: a function from a stanza to its schema.
        faults: what else is wrong with a stanza of the right schema, one clause each: "has two answers that
            are the same".
        complete: (name, stanza, folder of its file) -> the stanza with its defaults and with absolute paths, for
            stanzas of included folders.
    """

    def __init__(
        self,
        file: Path,
        schema: Callable[[Stanza], Schema],
        faults: Callable[[Stanza], Iterable[str]],
        complete: Callable[[str, Stanza, Path], Stanza] = lambda name, stanza, folder: stanza,
    ) -> None:
        self.file, self.kind, self.schema, self.faults = file, file.stem.removesuffix("s"), schema, faults
        self.complete = complete
        self._checked: dict[str, Stanza] = {}
        self._own: dict[tuple[Path, int], dict[str, Stanza]] = {}  # of an included file at its time of change

    @cached_property
    def built_in(self) -> dict[str, Stanza]:
        """The stanzas of the package, unchecked."""
        return parse(self.file.read_text("utf-8"), self.file.name)

    @property
    def stanzas(self) -> dict[str, Stanza]:
        """All stanzas, unchecked.

        Raises UsageError for a name that stands twice, and for an included file that is not valid.
        """
        files = [folder / self.file.name for folder in include.folders()]
        if not files:
            return self.built_in  # planning asks for each cell
        stanzas = dict(self.built_in)
        for file in filter(Path.is_file, files):
            own = self._read(file)
            for name in own:
                include.refuse_built_in(name, file, self.built_in)
                if name in stanzas:
                    raise UsageError(
                        f"{file}: {self.kind} {name} stands in another included folder: rename one"
                    )
            stanzas |= own
        return stanzas

    def _read(self, file: Path) -> dict[str, Stanza]:
        key = file, file.stat().st_mtime_ns
        if key not in self._own:
            try:
                stanzas = parse(file.read_text("utf-8"), str(file))
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"cannot read {file} ({error}): save it as UTF-8") from None
            if not isinstance(stanzas, dict) or not all(isinstance(s, dict) for s in stanzas.values()):
                raise UsageError(f"{file} is no mapping of names to stanzas: see {self.file} for examples")
            for name in stanzas:
                if not re.fullmatch(NAME, str(name)):
                    raise UsageError(
                        f"{file}: {self.kind} {name!r} must be written with letters, digits and . _ -: rename it"
                    )
            self._own[key] = {n: self.complete(n, stanza, file.parent) for n, stanza in stanzas.items()}
        return self._own[key]

    def is_own(self, name: str) -> bool:
        """Whether a stanza stands in an included folder."""
        return name not in self.built_in

    def __getitem__(self, name: str) -> Stanza:
        """The stanza of a name.

        Raises UsageError for an unknown name, with the nearest one, and for a stanza that is wrong.
        """
        stanza = self.stanzas.get(name) if isinstance(name, str) else None
        if stanza is None:
            raise UsageError(unknown(self.kind, name, self.stanzas) + include.hint())
        if self._checked.get(name) is not stanza:
            self.check(name, stanza)
            self._checked[name] = stanza
        return stanza

    def check(self, name: str, stanza: object) -> None:
        """Raises UsageError, which names file, stanza and key, for a stanza that does not fit the schema."""
        where = f"{self.file.name}, {self.kind} {name}"
        if not isinstance(stanza, dict):
            raise UsageError(f"{where}, is {_show(stanza)}: give its keys")
        _check(where, "", stanza, self.schema)
        for fault in self.faults(stanza):
            raise UsageError(f"{where}, {fault}")


_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C takes a tenth of the time


class _Loader(_FAST):  # type: ignore[misc, valid-type]
    """Refuses a key that stands twice: YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise UsageError(
                    f"{self.name}: the mapping of line {line} has the key {key!r} twice: leave one out"
                )
        return super().construct_mapping(node, deep)


def parse(text: str, file: str) -> dict[str, Stanza]:
    """The mapping that a YAML text holds; `file` is its name in errors."""
    loader = _Loader(text)
    loader.name = file
    try:
        return loader.get_single_data() or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not valid YAML ({' '.join(str(error).split())}): correct it") from None
    finally:
        loader.dispose()


def _check(where: str, path: str, value: object, schema: Schema) -> None:
    if isinstance(schema, FunctionType):
        schema = schema(value)
    if isinstance(schema, Keys):
        _check_keys(where, path, value, schema)
    elif isinstance(schema, list):
        if not isinstance(value, list) or not value:
            raise _wrong(where, path, value, "a list of one or more")
        for number, item in enumerate(value):
            _check(where, f"{path}[{number}]", item, schema[0])
    elif isinstance(schema, range):
        if type(value) is not int or value not in schema:
            raise _wrong(where, path, value, f"a whole number of at least {schema.start}")
    elif schema is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise _wrong(where, path, value, "a number above 0")
    elif schema is not object:
        if not isinstance(value, str) or not value.strip():
            raise _wrong(where, path, value, "text")
        if isinstance(schema, tuple) and value not in schema:
            raise UsageError(f"{where}: {unknown(path, value, schema)}")
        if isinstance(schema, re.Pattern) and not schema.fullmatch(value):
            raise _wrong(where, path, value, f"text like {schema.pattern}")


def _check_keys(where: str, path: str, value: object, keys: Keys) -> None:
    if not isinstance(value, dict) or not value:
        raise _wrong(where, path, value, "a mapping of keys")
    prefix, known = f"{path}." if path else "", {**keys.optional, **keys.required}
    for key in value:
        if not isinstance(key, str):
            raise UsageError(f"{where}, has the key {prefix}{_show(key)}, which is no text: put it in quotes")
        if known and key not in known:
            raise UsageError(f"{where}: {unknown('key', prefix + key, [prefix + k for k in known])}")
    for key in keys.required:
        if key not in value:
            raise UsageError(f"{where}, has no key {prefix + key!r}: add it")
    for key, item in value.items():
        _check(where, prefix + key, item, known.get(key, keys.each))


def _wrong(where: str, path: str, value: object, wanted: str) -> UsageError:
    hint = ": put it in quotes" if wanted == "text" and isinstance(value, bool | int | float) else ""
    return UsageError(f"{where}: {path} is {_show(value)}, but must be {wanted}{hint}")


def _show(value: object) -> str:
    if isinstance(value, bool):
        return f"{value} (YAML reads yes, no, on and off without quotes as truth values)"
    return "empty" if value is None or value in ("", [], {}) else repr(value)[:60]
