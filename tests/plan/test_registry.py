"""Method files: what is wrong with one is said of that one, and no other `baselines` stands in the way of ours."""

from __future__ import annotations

import sys
import types

import pytest

from dpzero.errors import UsageError
from dpzero.plan import registry, sweep

GOOD = """
class New:
    title = "New"
    private = True

    def __init__(self, model, loss, budget, *, learning_rate: float, seed: int = 0): ...
"""
FAULTS = [
    ('title = "New"', "", "class New has no title: give it one"),
    ('title = "New"', 'title = "N" + "ew"', "title is 'N' + 'ew', but must be a text, written out"),
    ("private = True", "private = 1", "private is 1, but must be True or False"),
    (
        "private = True",
        "private = True\n    order = 2",
        "order is 2, but must be 0 (forward passes), 1 (gradients) or None",
    ),
    ("learning_rate: float", "learning_rate", "argument learning_rate is annotated with nothing"),
    ("learning_rate: float", "learning_rate: list", "argument learning_rate is annotated with list"),
    ("learning_rate: float", "learning_rate: float = 1 / 3", "a default is no constant"),
    (", seed: int = 0", "", "__init__ takes no seed"),
    ("def __init__", "def init", "has no __init__"),
    ("class New:", "class New", "cannot be read (expected ':'"),
    ('title = "New"', 'title = "\0"', "cannot be read"),
]


@pytest.mark.parametrize("old, new, words", FAULTS)
def test_a_fault_is_named_and_stops_no_sweep_that_does_not_use_the_file(drop, write, old, new, words):
    assert GOOD.count(old) == 1
    drop("new", GOOD.replace(old, new))
    assert sweep.load("smoke") and "new" not in registry.cards()
    with pytest.raises(UsageError) as error:
        write("one", "extends: smoke\nmethods: {new: {learning_rate: 1}}\n")
    assert words in str(error.value) and "new.py" in str(error.value) and "\n" not in str(error.value)


def test_an_annotated_attribute_is_one(drop):
    drop(
        "new",
        GOOD.replace("private = True", "private: bool = True").replace('title = "New"', 'title: str = "New"'),
    )
    card = registry.card("new")
    assert (card.title, card.private, card.order) == ("New", True, 0)


def test_a_file_that_is_no_utf_8_is_named(drop):
    drop("new", GOOD)
    (registry.ROOT / "baselines" / "new.py").write_bytes(b"# \xe9\n")
    registry._read_files.cache_clear()
    with pytest.raises(UsageError, match="cannot be read"):
        registry.card("new")


def test_another_baselines_is_no_obstacle(monkeypatch, tmp_path):
    """Of the working directory or from a package index: loaded already, or found first."""
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "__init__.py").write_text("raise ImportError('not ours')")
    monkeypatch.syspath_prepend(tmp_path)
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "baselines"}
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "baselines", types.ModuleType("baselines"))
    loaded = registry.card("dp_sgd").load()  # which imports others of our files
    assert sys.modules[loaded.__module__].__file__ == str(registry.ROOT / "baselines" / "dp_sgd.py")
    assert sys.modules["baselines.fine_tuning"].__file__ == str(
        registry.ROOT / "baselines" / "fine_tuning.py"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "baselines"]:
        monkeypatch.delitem(sys.modules, name)
    sys.modules.update(ours)
