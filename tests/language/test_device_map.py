"""A model whose layers are spread over devices gives the same results as on one device."""

from __future__ import annotations

import numpy as np
import pytest
from accelerate.hooks import AlignDevicesHook
from torch import nn

from baselines.mezo import MeZO
from dpzero.language.data import tasks
from dpzero.language.models import text_classifier
from dpzero.language.models.encoding import Examples
from dpzero.language.models.losses import CrossEntropy
from dpzero.zeroth_order.transcript import digest

BATCH = Examples.from_token_ids([[1, 2, 3][: 1 + i % 3] for i in range(6)], np.arange(6) % 3)


def load(name: str = "tiny-causal", device: str = "cpu"):
    return text_classifier.load(name, tasks.load("toy"), "full", device=device)


@pytest.mark.parametrize("name", ["tiny-causal", "tiny-encoder"])
@pytest.mark.parametrize("count", [1, 2])
def test_devices_get_equal_shares_and_layers_are_not_split(name, count):
    model = load(name)
    places = text_classifier.assign_devices(model, count)
    numbers = list(places.values())
    assert numbers == sorted(numbers) and set(numbers) == set(range(count))
    covered = [p for unit in places for p in model.get_submodule(unit).parameters()]
    assert {id(p) for p in covered} == {id(p) for p in model.parameters()}
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    assert any(unit.rsplit(".", 1)[0] in layers for unit in places)
    bytes_of = [sum(p.nbytes for u, n in places.items() if n == k for p in model.get_submodule(u).parameters()) for k in range(count)]  # fmt: skip
    largest = max(sum(p.nbytes for p in model.get_submodule(u).parameters()) for u in places)
    assert max(bytes_of) - min(bytes_of) <= 2 * largest


def test_tied_parameters_stay_together():
    model = nn.Sequential(
        nn.Embedding(50, 4), nn.Linear(4, 40), nn.Linear(40, 4), nn.Linear(4, 50, bias=False)
    )
    model[3].weight = model[0].weight
    places = text_classifier.assign_devices(model, 2)
    assert places["0"] == places["3"] and set(places.values()) == {0, 1}


@pytest.mark.parametrize("settings", [{}, {"perturb": "on_read"}, {"direction_law": "low_rank"}])
@pytest.mark.parametrize("name", ["tiny-causal", "tiny-encoder"])
def test_steps_on_several_devices_equal_those_on_one(name, settings):
    results = []
    for device in ("cpu", "cpu,cpu"):
        model = load(name, device)
        hooks = [m for m in model.modules() if isinstance(getattr(m, "_hf_hook", None), AlignDevicesHook)]
        assert bool(hooks) == (device == "cpu,cpu")
        me = MeZO(model, CrossEntropy(64), 6, learning_rate=1e-3, smoothing=1e-2, **settings)
        results.append(([me.step(BATCH) for _ in range(3)], digest(me.parameters)))
    assert results[0] == results[1] and len(set(results[0][0])) == 3
