"""Finds the methods by file name and reads their cards without importing them (they import torch)."""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import UsageError, unknown

ROOT = Path(__file__).resolve().parents[2]
TYPES = {"int": int, "float": float, "str": str, "bool": bool}


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

    def load(self):
        """The class itself."""
        name = "dpzero.algorithm" if self.file == "dpzero" else f"baselines.{self.file}"
        return getattr(importlib.import_module(name), self.class_name)


@cache
def cards() -> dict[str, Card]:
    """Every method: DPZero, and each file of baselines/ that holds a class with a `private` attribute."""
    files = {"dpzero": ROOT / "dpzero" / "algorithm.py"}
    files |= {f.stem: f for f in sorted((ROOT / "baselines").glob("*.py")) if not f.stem.startswith("_")}
    found = {name: _read(name, file) for name, file in files.items()}
    return {name: card for name, card in found.items() if card is not None}


def card(name: str) -> Card:
    if name not in cards():
        raise UsageError(unknown("method file", name, cards()))
    return cards()[name]


def _read(name: str, file: Path) -> Card | None:
    for node in ast.parse(file.read_text()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        constants = {
            target.id: statement.value.value
            for statement in node.body
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        init = next((s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"), None)
        if "private" not in constants or init is None:
            continue
        arguments = list(zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True))
        settings = {a.arg: ast.unparse(a.annotation) for a, _ in arguments if a.arg != "seed"}
        settings |= _engine() if init.args.kwarg else {}
        required = frozenset(a.arg for a, default in arguments if default is None)
        order = constants.get("order", 0)  # TwoPoint's, for the classes that inherit it
        return Card(name, node.name, constants["title"], constants["private"], order, settings, required)
    return None


@cache
def _engine() -> dict[str, str]:
    """What every zeroth-order method passes on: the arguments of TwoPoint that have a default."""
    tree = ast.parse((ROOT / "dpzero" / "zeroth_order" / "two_point.py").read_text())
    arguments = next(
        node.args
        for cls in tree.body
        if isinstance(cls, ast.ClassDef) and cls.name == "TwoPoint"
        for node in cls.body
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {a.arg: ast.unparse(a.annotation) for a, default in pairs if default is not None}
