"""The methods of this project, and the example of baselines/README.md, keep to the contract of `studies.method_contract`."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dpzero import include
from dpzero.language.models import encoding, losses
from dpzero.plan.registry import ROOT

INCLUDED = Path(tempfile.mkdtemp())
(INCLUDED / "sign_zo.py").write_text(
    re.findall("```python\n(.*?)```", (ROOT / "baselines" / "README.md").read_text("utf-8"), re.DOTALL)[0],
    "utf-8",
)
with pytest.MonkeyPatch.context() as patch:  # so that its cards are read with the example
    patch.setenv(include.VARIABLE, str(INCLUDED))
    from dpzero.studies.method_contract import *  # noqa: F403
    from dpzero.studies.method_contract import CARDS, LENGTH, make_model


@pytest.fixture(scope="module", autouse=True)
def included():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(include.VARIABLE, str(INCLUDED))
        yield


def test_every_method_file_is_found():
    files = {file.stem for file in (ROOT / "baselines").glob("[!_]*.py")}
    assert set(CARDS) == files | {"dpzero", "sign_zo"}
    assert {"dpzero", "dp_zo", "mezo", "dp_sgd", "fine_tuning", "zero_shot"} <= set(CARDS)


def test_titles_tell_the_methods_apart():
    assert len({card.title for card in CARDS.values()}) == len(CARDS)


# Losses ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", ["full", "lora"])
@pytest.mark.parametrize("name", ["tiny-encoder", "tiny-causal"])
@pytest.mark.parametrize("token_budget", [40, 2048])
def test_no_example_influences_the_loss_of_another(name, tune, token_budget, data):
    """Another text, a longer one, a shorter one, another label, or none at all in its place."""
    model, loss = make_model(tune, name), losses.CrossEntropy(token_budget)
    rounding = 4e-6  # of losses of about 2, through some hundred float32 operations each
    batch = data[name]["train"][np.arange(6)]
    rows = [batch.ids(i).tolist() for i in range(6)]
    with torch.no_grad():
        expected = loss(model, batch)
        for other in ([5, 6, 7], list(range(3, 3 + LENGTH)), [9]):
            changed = encoding.Examples.from_token_ids(
                [*rows[:2], other, *rows[3:]], [*batch.labels[:2], 3, *batch.labels[3:]]
            )
            gap = (loss(model, changed) - expected).abs()
            assert gap[[0, 1, 3, 4, 5]].max() < rounding and gap[2] > 1e-4
        without = loss(model, batch[np.array([0, 1, 3, 4, 5])])
        assert (without - expected[[0, 1, 3, 4, 5]]).abs().max() < rounding
        alone = torch.cat([loss(model, batch[np.array([i])]) for i in range(6)])
        assert (alone - expected).abs().max() < rounding
