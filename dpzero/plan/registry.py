"""Finds the methods by file name and reads their cards without importing them (they import torch)."""

from __future__ import annotations

import ast
import importlib
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

from ..errors import UsageError, unknown

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"int": int, "float": float, "str": str, "bool": bool}
PACKAGE = "baselines"
CONSTANTS = {"title": (str,), "private": (bool,), "order": (int, type(None))}


@dataclass(frozen=True)
class Card:
    """What planning needs to know of a method. `settings`: name -> type name; `required`: those without a default."""

    file: str
    class_name: str
    title: str
    private: bool
    order: int | None
    settings: dict[str, str]
    required: frozenset[str]
    defaults: dict[str, object] = field(default_factory=dict)

    def load(self):
        """The class itself."""
        if self.file != "dpzero":
            _claim_package()
        name = "dpzero.algorithm" if self.file == "dpzero" else f"{PACKAGE}.{self.file}"
        return getattr(importlib.import_module(name), self.class_name)


def choices(type_name: str) -> tuple[str, ...]:
    """The values that a `Literal` lists; none for another type."""
    return (
        tuple(ast.literal_eval(type_name.removeprefix("Literal"))) if type_name.startswith("Literal[") else ()
    )


def _claim_package() -> None:
    """Under the name of our folder there is our folder, whatever lies in the working directory or was installed under that name."""
    folder = str(ROOT / PACKAGE)
    found = sys.modules.get(PACKAGE)
    if found is not None and folder in map(str, getattr(found, "__path__", ())):
        return
    for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
        del sys.modules[name]
    ours = ModuleType(
        PACKAGE
    )  # its __init__.py holds no code, and an installed package may have overwritten it
    ours.__path__, ours.__file__ = [folder], f"{folder}/__init__.py"
    sys.modules[PACKAGE] = ours


def cards() -> dict[str, Card]:
    """Every method: DPZero, and each file of baselines/ that holds a class with a `private` attribute."""
    return {name: found for name, found in read_all().items() if isinstance(found, Card)}


def card(name: str) -> Card:
    """Raises UsageError for a method that there is not, or whose file has a fault: those of others do not matter."""
    found = read_all().get(name) if isinstance(name, str) else None
    if isinstance(found, UsageError):
        raise found
    if found is None:
        raise UsageError(unknown("method file", name, cards()))
    return found


@cache
def read_all() -> dict[str, Card | UsageError]:
    """name -> the method of a file, or what is wrong with the file."""
    files = {"dpzero": ROOT / "dpzero" / "algorithm.py"}
    files |= {f.stem: f for f in sorted((ROOT / PACKAGE).glob("*.py")) if not f.stem.startswith("_")}
    found: dict[str, Card | UsageError] = {}
    for name, file in files.items():
        try:
            if made := _read(name, file):
                found[name] = made
        except UsageError as error:
            found[name] = error
    return found


def _read(name: str, file: Path) -> Card | None:
    where = f"method file {file}"
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (SyntaxError, ValueError) as error:  # of Python, of UTF-8, a NUL
        raise UsageError(f"{where} cannot be read ({error}): correct it") from None
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        constants = dict(_constants(node))
        init = next((s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"), None)
        if "private" not in constants:
            continue
        where = f"{where}, class {node.name}"
        if init is None:
            raise UsageError(
                f"{where} has no __init__, whose keyword-only arguments are the settings: give it one"
            )
        _check_constants(where, constants)
        return Card(
            name,
            node.name,
            constants["title"],
            constants["private"],
            constants.get("order", 0),
            *_settings(where, init),
        )
    return None


def _constants(cls: ast.ClassDef):
    """(name, value) of what the class assigns, with or without an annotation; a value that is no constant as its text."""
    for statement in cls.body:
        targets = (
            statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        )
        value = getattr(statement, "value", None)
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                yield target.id, value.value if isinstance(value, ast.Constant) else _Text(ast.unparse(value))


class _Text:
    """An expression that is no constant."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _check_constants(where: str, constants: dict[str, object]) -> None:
    if "title" not in constants:
        raise UsageError(f"{where} has no title: give it one, as tables are to print it")
    words = {
        "title": "a text",
        "private": "True or False",
        "order": "0 (forward passes), 1 (gradients) or None",
    }
    for name, kinds in CONSTANTS.items():
        value = constants.get(name, 0)
        if (name in constants and type(value) not in kinds) or (
            name == "order" and value not in (0, 1, None)
        ):
            raise UsageError(f"{where}: {name} is {value!r}, but must be {words[name]}, written out")


def _settings(where: str, init: ast.FunctionDef) -> tuple[dict[str, str], frozenset[str], dict[str, object]]:
    """Types of the keyword-only arguments, those without a default, and the defaults."""
    arguments = [
        (a, d) for a, d in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True) if a.arg != "seed"
    ]
    if len(arguments) == len(init.args.kwonlyargs):
        raise UsageError(
            f"{where}: __init__ takes no seed: add `seed: int = 0` to its keyword-only arguments"
        )
    for argument, _ in arguments:
        kind = ast.unparse(argument.annotation) if argument.annotation else "nothing"
        if kind not in TYPES and not kind.startswith("Literal["):
            raise UsageError(
                f"{where}: argument {argument.arg} is annotated with {kind}, but a setting is an int, float, str, bool or a Literal of texts"
            )
    settings = {a.arg: ast.unparse(a.annotation) for a, _ in arguments}
    try:
        defaults = {a.arg: ast.literal_eval(d) for a, d in arguments if d is not None}
    except ValueError:
        raise UsageError(
            f"{where}: a default is no constant, but settings are written out: write it out"
        ) from None
    required = frozenset(a.arg for a, d in arguments if d is None)
    if init.args.kwarg:
        more, more_defaults = _engine()
        settings, defaults = settings | more, defaults | more_defaults
    return settings, required, defaults


OF_OTHER_LOSSES = ("one_at_a_time",)  # bits of this project's are each text's own


@cache
def _engine() -> tuple[dict[str, str], dict[str, object]]:
    """What every zeroth-order method passes on: the arguments of TwoPoint that have a default, and these."""
    tree = ast.parse(Path(__file__).parents[1].joinpath("zeroth_order", "two_point.py").read_text("utf-8"))
    arguments = next(
        node.args
        for cls in tree.body
        if isinstance(cls, ast.ClassDef) and cls.name == "TwoPoint"
        for node in cls.body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    pairs = [
        (a, d)
        for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if d is not None and a.arg not in OF_OTHER_LOSSES
    ]
    return {a.arg: ast.unparse(a.annotation) for a, _ in pairs}, {
        a.arg: ast.literal_eval(d) for a, d in pairs
    }
