"""The registry of methods: found by file name, and described without being imported (they import torch).

A user's methods are Python files in an included folder (see `include`). They are imported as parts of the package
`baselines`, whose files they may import.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import imports, include
from ..errors import UsageError, unknown

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"int": int, "float": float, "str": str, "bool": bool}
PACKAGE = "baselines"
# this project's losses already keep the bits of each example; groups are tensors, which no sweep can name
NOT_IN_SWEEPS = ("one_at_a_time", "groups")
CONSTANTS: dict[str, tuple[Callable[[object], bool], str]] = {  # of a method's class: the check, in words
    "title": (lambda value: type(value) is str, "a text"),
    "private": (lambda value: type(value) is bool, "True or False"),
    "order": (
        lambda value: value is None or (type(value) is int and value in (0, 1)),
        "0 (forward passes), 1 (gradients) or None",
    ),
    "public_data": (lambda value: type(value) is bool, "True or False"),
}


@dataclass(frozen=True)
class Card:
    """What planning knows of a method.

    Attributes:
        file: name of its file, without the ending.
        settings: name -> type, as it is written in the signature.
        required: the settings without a default.
        public_data: whether the method reads public examples beside the private ones.
    """

    file: str
    class_name: str
    title: str
    private: bool
    order: int | None
    settings: dict[str, str]
    required: frozenset[str]
    defaults: dict[str, object] = field(default_factory=dict)
    public_data: bool = False

    @property
    def writes_demonstrations(self) -> bool:
        """Whether the method trains nothing, and writes with noise what then stands before each prompt."""
        return self.private and self.order is None

    def load(self) -> Any:
        """Import the method's class."""
        if self.file != "dpzero":
            _claim_package()
        name = "dpzero.algorithm" if self.file == "dpzero" else f"{PACKAGE}.{self.file}"
        with imports.quickly():
            return getattr(importlib.import_module(name), self.class_name)


def choices(type_name: str) -> tuple[str, ...]:
    """The values that a `Literal` lists; none for another type."""
    if not type_name.startswith("Literal["):
        return ()
    return tuple(ast.literal_eval(type_name.removeprefix("Literal")))


def _claim_package() -> None:
    """Let PACKAGE be our folder and the included ones, whatever has its name in the working directory or elsewhere."""
    paths = [str(ROOT / PACKAGE), *map(str, include.folders())]
    package = sys.modules.get(PACKAGE)
    if package is not None and paths[0] in map(str, getattr(package, "__path__", ())):
        package.__path__ = paths
        return
    for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
        del sys.modules[name]
    # made here: its __init__.py holds no code, and an installed package may have overwritten it
    ours = ModuleType(PACKAGE)
    ours.__path__, ours.__file__ = paths, f"{paths[0]}/__init__.py"
    sys.modules[PACKAGE] = ours


def cards() -> dict[str, Card]:
    """Every method: DPZero, and each file of baselines/ that holds a class with a `private` attribute."""
    return {name: entry for name, entry in read_all().items() if isinstance(entry, Card)}


def card(name: str) -> Card:
    """The card of a method. Raises UsageError for an unknown one, and for a fault in its file."""
    entry = read_all().get(name) if isinstance(name, str) else None
    if isinstance(entry, UsageError):
        raise entry
    if entry is None:
        raise UsageError(unknown("method file", name, cards()))
    return entry


def method_files() -> dict[str, Path]:
    """Name -> file, of the package's methods and those of the included folders.

    Raises UsageError for two files of one name.
    """
    files = {"dpzero": ROOT / "dpzero" / "algorithm.py"}
    files |= {f.stem: f for f in sorted((ROOT / PACKAGE).glob("*.py")) if not f.stem.startswith("_")}
    own = include.methods()
    for name, file in own.items():
        include.refuse_built_in(name, file, files)
    return files | own


def read_all() -> dict[str, Card | UsageError]:
    """File name -> the card of its method, or what is wrong with the file."""
    return _read_files(tuple(method_files().items()))


@cache
def _read_files(files: tuple[tuple[str, Path], ...]) -> dict[str, Card | UsageError]:
    entries: dict[str, Card | UsageError] = {}
    for name, file in files:
        try:
            if (entry := _read(name, file)) is not None:
                entries[name] = entry
        except UsageError as error:
            entries[name] = error
    return entries


def _read(name: str, file: Path) -> Card | None:
    where = f"method file {file}"
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (SyntaxError, ValueError) as error:  # of Python, of UTF-8, a NUL
        raise UsageError(f"{where} cannot be read ({error}): correct it") from None
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        classes = [node, *_bases(node)]
        constants = {key: value for cls in reversed(classes) for key, value in _constants(cls)}
        if "private" not in constants:
            continue
        where = f"{where}, class {node.name}"
        if "title" not in dict(_constants(node)):
            raise UsageError(f"{where} has no title: give it one, as tables are to print it")
        for key, (allowed, words) in CONSTANTS.items():
            if key in constants and not allowed(constants[key]):
                raise UsageError(f"{where}: {key} is {constants[key]!r}, but must be {words}, written out")
        title, private, order = constants["title"], constants["private"], constants.get("order", 0)
        public = constants.get("public_data", False)
        return Card(name, node.name, title, private, order, *_settings(where, classes), public)
    return None


@cache
def _known_classes() -> dict[str, ast.ClassDef]:
    """The classes of this project that a method may inherit from."""
    package, nodes = Path(__file__).parents[1], []
    engine = ("zeroth_order/two_point.py", "private_two_point.py", "algorithm.py")
    for file in [*(package / name for name in engine), *sorted((ROOT / "baselines").glob("[!_]*.py"))]:
        nodes += ast.parse(file.read_text("utf-8")).body
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def _bases(node: ast.ClassDef) -> list[ast.ClassDef]:
    """The known classes that a class inherits from, the nearest first."""
    known = _known_classes()
    bases = [known[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in known]
    return [cls for base in bases for cls in (base, *_bases(base))]


def _constants(cls: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    """(name, value) of what the class assigns, with or without an annotation."""
    for statement in cls.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and (value := statement.value) is not None:
            constant = value.value if isinstance(value, ast.Constant) else _Expression(ast.unparse(value))
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from ((target.id, constant) for target in targets if isinstance(target, ast.Name))


_NOTHING = ast.Name("nothing")  # in place of a missing annotation


class _Expression(str):
    """The source of a value that is no constant, shown without quotes."""

    __repr__ = str.__str__


def _settings(
    where: str, classes: list[ast.ClassDef]
) -> tuple[dict[str, str], frozenset[str], dict[str, object]]:
    """Types of the keyword-only arguments of `__init__`, those without a default, and the defaults.

    If `__init__` takes `**kwargs`, it passes them on to the base class, whose arguments then count, too.
    """
    inits = [
        s for cls in classes for s in cls.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"
    ]
    if not inits:
        raise UsageError(
            f"{where} has no __init__, whose keyword-only arguments are the settings: give it one"
        )
    arguments: dict[str, tuple[str, ast.expr | None]] = {}  # name -> annotation, default
    for init in inits:
        pairs = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
        arguments = {a.arg: (ast.unparse(a.annotation or _NOTHING), d) for a, d in pairs} | arguments
        if not init.args.kwarg:
            break
    if arguments.pop("seed", None) is None:
        raise UsageError(
            f"{where}: __init__ takes no seed: add `seed: int = 0` to its keyword-only arguments"
        )
    settings: dict[str, str] = {}
    defaults: dict[str, object] = {}
    for name, (kind, default) in arguments.items():
        if name in NOT_IN_SWEEPS:
            continue
        if kind not in TYPES and not kind.startswith("Literal["):
            raise UsageError(
                f"{where}: argument {name} is annotated with {kind}, but a setting is an int, float, "
                "str, bool or a Literal of texts"
            )
        settings[name] = kind
        try:
            defaults |= {name: ast.literal_eval(default)} if default is not None else {}
        except ValueError:
            raise UsageError(
                f"{where}: a default is no constant, but settings are written out: write it out"
            ) from None
    return settings, frozenset(settings.keys() - defaults.keys()), defaults
