"""Who may import whom, without circles. Planning and reporting import no heavy library."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted([*(ROOT / "dpzero").rglob("*.py"), *(ROOT / "baselines").rglob("*.py")])

METHODS = {"dpzero.algorithm", "dpzero.private_two_point", "baselines"}
LIBRARY = {*METHODS, "dpzero.zeroth_order", "dpzero.privacy", "dpzero.language"}
# room: the rooms that it may import from, beside itself. errors, files, include, imports and the version are free for all.
MAY_IMPORT = {
    "dpzero.errors": set(),
    "dpzero.files": set(),
    "dpzero.include": set(),
    "dpzero.imports": set(),
    "dpzero.zeroth_order": set(),
    "dpzero.privacy": set(),
    "dpzero.language": set(),
    "dpzero.report": set(),
    "dpzero.private_two_point": {"dpzero.zeroth_order", "dpzero.privacy"},
    "dpzero.algorithm": {"dpzero.private_two_point"},
    "dpzero.losses": {"dpzero.zeroth_order"},
    "dpzero.trainer": {"dpzero.algorithm", "dpzero.zeroth_order", "dpzero.privacy"},
    "dpzero.suggestion": {"dpzero.zeroth_order", "dpzero.privacy"},
    "dpzero.federation": {"dpzero.algorithm", "dpzero.zeroth_order", "dpzero.privacy"},
    "baselines": LIBRARY,
    "dpzero.plan": {"dpzero.privacy", "dpzero.language", "dpzero.algorithm"},  # loads methods by their names
    "dpzero.memory": {*LIBRARY, "dpzero.plan"},
    "dpzero.run": {*LIBRARY, "dpzero.plan", "dpzero.memory"},
    "dpzero.studies": {*LIBRARY, "dpzero.federation", "dpzero.plan", "dpzero.memory", "dpzero.run"},
    "dpzero.cli": {*LIBRARY, "dpzero.plan", "dpzero.memory", "dpzero.run", "dpzero.studies", "dpzero.report"},
}
MODULES: dict[str, Path] = {}
AT_THE_DOOR = {"dpzero", "dpzero.__main__"}  # the public names and the command line see every room


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES.update({module_of(file): file for file in FILES})


def room_of(module: str) -> str:
    """dpzero.privacy.budget -> dpzero.privacy; baselines.mezo -> baselines."""
    parts = module.split(".")
    return parts[0] if parts[0] == "baselines" else ".".join(parts[:2])


def imported(module: str, source: str, is_package: bool) -> Iterator[str]:
    """Absolute names of all that is imported anywhere in the source: inside functions, for types alone, and by `import_module`."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
    if "import_module(" in source:  # the names that a module may load are written down as texts
        texts = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        yield from (
            name
            for text in texts
            for name in (text, f"{'.'.join(package)}.{text}", f"dpzero.{text}" if "." in text else "")
            if name in MODULES and "." in name
        )


def broken(module: str, source: str, is_package: bool = False) -> list[str]:
    """Imports of the project that the rule forbids."""
    room = room_of(module)
    allowed = MAY_IMPORT[room] | {
        room,
        "dpzero.errors",
        "dpzero.files",
        "dpzero.include",
        "dpzero.imports",
        "dpzero.__version__",
    }
    names = [
        n for n in imported(module, source, is_package) if n.split(".")[0] in ("dpzero", "baselines", "tests")
    ]
    return [name for name in names if room_of(name) not in allowed]


def test_a_room_imports_only_from_rooms_that_it_may():
    files = {module: file for module, file in MODULES.items() if module not in AT_THE_DOOR}
    found = {m: broken(m, file.read_text(), file.name == "__init__.py") for m, file in files.items()}
    assert {module: names for module, names in found.items() if names} == {}


def dependencies() -> dict[str, set[str]]:
    """module -> the modules of the project that it imports in any way."""
    found: dict[str, set[str]] = {}
    for module, file in MODULES.items():
        names = set(imported(module, file.read_text(), file.name == "__init__.py"))
        parents = {name.rpartition(".")[0] for name in names - MODULES.keys()}  # a name of a module
        found[module] = ((names | parents) & MODULES.keys()) - {module}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_by_way_of_others():
    """Lazy and typing imports included."""
    assert circle(dependencies()) == []


def test_no_room_imports_itself_by_way_of_others():
    rooms: dict[str, set[str]] = {}
    for module, others in dependencies().items():
        if module not in AT_THE_DOOR:
            mine = room_of(module)
            rooms.setdefault(mine, set()).update({room_of(o) for o in others - AT_THE_DOOR} - {mine})
    assert circle(rooms) == []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})[0] in "abc"
    source = "from importlib import import_module\nimport_module(f'dpzero.{HOME}')\nHOME = {'x': 'run.run'}"
    assert "dpzero.run.run" in imported("dpzero", source, True)


def test_every_room_has_its_rule():
    rooms = {room_of(module_of(file)) for file in FILES} - AT_THE_DOOR
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dpzero.privacy.budget", "from ..zeroth_order import Gaussian"),
        ("dpzero.privacy.budget", "from .. import algorithm"),
        ("dpzero.privacy.budget", "def f():\n    import dpzero.language.models.losses"),
        ("dpzero.zeroth_order.two_point", "from dpzero.privacy.randomness import RunKey"),
        ("dpzero.zeroth_order.two_point", "from dpzero import Budget"),
        ("dpzero.algorithm", "from .language import losses"),
        ("baselines.mezo", "from dpzero.run import run"),
        ("dpzero.language.models.losses", "from ...run import run"),
        ("dpzero.language.models.losses", "import baselines.mezo"),
        ("dpzero.run.run", "from ..report import tables"),
        ("dpzero.report.tables", "from ..plan import sweep"),
    ],
)
def test_the_rule_sees_every_way_to_break_it(module, source):
    assert len(broken(module, source)) == 1


def test_the_rule_lets_pass_what_is_allowed():
    assert (
        broken(
            "dpzero.privacy.budget",
            "from .streams import RunKey\nfrom ..errors import UsageError\nimport torch",
        )
        == []
    )
    assert broken("dpzero.report", "from .tables import write_tables", is_package=True) == []
    assert broken("baselines.dp_sgd", "from dpzero.privacy.clipping import clip_factors") == []


def loaded(statement: str) -> set[str]:
    """Top-level modules after a statement, in a fresh interpreter."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout))


HEAVY = {"torch", "transformers", "pandas", "matplotlib", "dp_accounting", "opacus", "peft", "scipy", "numpy"}


@pytest.mark.parametrize(
    "statement",
    [
        "import dpzero",
        "import dpzero.plan.sweep, dpzero.report",
        "from dpzero.plan import sweep; assert sweep.load('smoke')",
        "from dpzero.plan.registry import cards; assert cards()['dpzero'].private",
        "import dpzero.__main__",
    ],
)
def test_planning_imports_no_heavy_library(statement):
    assert not loaded(statement) & HEAVY


def test_reporting_needs_no_torch():
    names = sorted(file.stem for file in (ROOT / "dpzero" / "report").glob("[!_]*.py"))
    assert not loaded("\n".join(f"import dpzero.report.{name}" for name in names)) & {
        *("torch", "transformers", "opacus", "dp_accounting", "matplotlib.pyplot"),
    }
