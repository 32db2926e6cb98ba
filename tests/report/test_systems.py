"""The table of the literature's systems names what exists."""

from __future__ import annotations

import csv
import re

import pytest

from dpzero.__main__ import VERBS
from dpzero.cli.options import build_parser
from dpzero.cli.studies import STUDIES
from dpzero.plan import registry, sweep
from dpzero.plan.settings import SCHEMAS
from dpzero.report.overview import SYSTEMS

ROWS = list(csv.DictReader(SYSTEMS.open(encoding="utf-8")))
NAMED = re.compile(r"(?:(method|sweep|study|verb) )?`([^`]+)`")


def choices(setting: str) -> set[str]:
    """The values of a setting that is a choice, of runs or of any method."""
    if setting in SCHEMAS["run"]:
        return set(map(str, SCHEMAS["run"][setting].allowed))
    types = [card.settings[setting] for card in registry.cards().values() if setting in card.settings]
    return {choice for one in types for choice in map(str, registry.choices(one))}


@pytest.mark.parametrize("row", ROWS, ids=[row["system"] for row in ROWS])
def test_what_a_row_names_exists_and_what_is_not_here_has_a_reason(row):
    found = NAMED.findall(row["here"])
    assert bool(found) != (row["status"] in ("not built", "out of reach"))
    assert found or row["remark"]
    help_text = build_parser(VERBS, "", "").format_help()
    for kind, name in found:
        if kind == "method":
            assert name in registry.cards()
        elif kind == "sweep":
            assert sweep.read(name)
        elif kind == "verb":
            assert name in help_text
        elif kind == "study":
            assert name in STUDIES
        else:
            setting, _, value = name.partition(": ")
            assert value in choices(setting)
