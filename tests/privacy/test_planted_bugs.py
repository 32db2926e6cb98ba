"""The faults of public code, planted one at a time: each makes a test of this suite fail that passes without
it.

The whole list, some hundred bugs, takes ten minutes: python tests/planted.py
"""

from __future__ import annotations

import pytest

from tests import planted

PLANTS = {plant.name: plant for plant in planted.plants()}
OF_PUBLIC_CODE = [name for name, plant in PLANTS.items() if plant.origin == "public code"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, *OF_PUBLIC_CODE])
def test_each_fault_of_public_code_is_caught(name):
    tests = dict.fromkeys(test for each in OF_PUBLIC_CODE for test in PLANTS[each].tests)
    outcome = planted.ask(PLANTS[name].tests if name else tuple(tests), PLANTS.get(name))
    assert bool(outcome.test) == bool(name), outcome.output[-3000:]
    assert name is None or outcome.test.startswith(PLANTS[name].tests)


def test_every_plant_can_be_planted_and_the_tests_that_should_see_it_exist():
    assert len(OF_PUBLIC_CODE) == 4 and sum(plant.origin == "own list" for plant in PLANTS.values()) >= 40
    assert sum(plant.origin == "finding" for plant in PLANTS.values()) == 3
    for plant in PLANTS.values():
        assert all(old != new for _, old, new in plant.edits), plant.name
        for file, old, _ in plant.edits:
            assert (planted.ROOT / file).read_text("utf-8").count(old) == 1, (
                f"{plant.name}: {old!r} in {file}"
            )
        for file, _, test in (test.partition("::") for test in plant.tests):
            assert f"def {test}" in planted.source(planted.ROOT / file), f"{plant.name}: {test} in {file}"
