"""Every text file is read and written as UTF-8, whatever the locale: the source is walked for calls that leave it to the locale."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "dpzero").rglob("*.py"), *(ROOT / "baselines").rglob("*.py"), ROOT / "Snakefile"])
MODES = set("rwxabt+")


# still to be done: take a file out of this list with its change
def left_to_the_locale(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if "encoding" not in given and _is_text(name, owner, node.args, given):
                yield f"line {node.lineno}: {name}"


def _is_text(name: str, owner: str, arguments: list[ast.expr], given: dict) -> bool:
    if name == "read_text":
        return not arguments
    if name == "write_text":
        return len(arguments) < 2
    if name in ("run", "Popen", "check_output", "check_call", "call"):
        return bool({"text", "universal_newlines"} & given.keys())
    if name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile") and owner not in (
        "tarfile",
        "zipfile",
        "tar",
    ):
        if owner == "os" and name == "open":
            return False
        inside = [node for argument in [*arguments, *given.values()] for node in ast.walk(argument)]
        modes = [
            node.value for node in inside if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        modes = [mode for mode in modes if mode and set(mode) <= MODES]
        binary = any("b" in mode for mode in modes)
        return not binary and not (name.endswith("TemporaryFile") and not modes)
    return False


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_is_left_to_the_locale(file):
    source = file.read_text("utf-8")
    if file.name == "Snakefile":  # its Python: what stands before the first rule, and the handlers
        source = "\n".join(line for line in source.splitlines() if "read_text" in line or "open(" in line)
        source = source.strip()
    assert list(left_to_the_locale(source)) == []


@pytest.mark.parametrize(
    "source, count",
    [
        ("p.read_text()", 1),
        ("p.read_text('utf-8')", 0),
        ("p.write_text(x)", 1),
        ("p.write_text(x, encoding='utf-8')", 0),
        ("open(p)", 1),
        ("p.open('w')", 1),
        ("p.open('rb')", 0),
        ("open(p, mode='ab')", 0),
        ("open(p, encoding='utf-8')", 0),
        ("subprocess.run(c, text=True)", 1),
        ("subprocess.run(c, encoding='utf-8')", 0),
        ("os.open(p, os.O_WRONLY)", 0),
        ("os.fdopen(f, 'w')", 1),
    ],
)
def test_the_walk_sees_them(source, count):
    assert len(list(left_to_the_locale(source))) == count
