"""The reported iterate: the last, that of the least dev loss, never in a release, or one that a private choice takes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dpzero.errors import UsageError
from dpzero.language.models import encoding
from dpzero.plan import sweep
from dpzero.privacy import Budget
from dpzero.run import checkpoint
from dpzero.run.checkpoint_selection import RULES, SCORES, BestDev
from dpzero.run.replay import replay_record
from dpzero.run.run import run_cell
from dpzero.run.setup import Setup
from tests.run.stopping import interrupt_at

WORDS = "best dev checkpoint (published practice, not accounted)"


def quiet(line: str) -> None: ...


def best(cell: dict, rule: str = "best_dev") -> dict:
    return cell | {"settings": cell["settings"] | {"iterate": rule}}


def test_the_least_loss_counts_and_the_earliest_of_equals():
    kept, weights = BestDev(), torch.zeros(3)
    for step, loss in enumerate((2.0, 1.0, 1.0, float("nan"), 3.0)):
        kept.offer(step, SCORES["best_dev"]({"dev_loss": loss}), [weights + step])
    assert (kept.step, kept.score) == (1, -1.0)
    kept.restore([weights])
    assert torch.equal(weights, torch.ones(3))


def test_a_resumed_one_is_the_same():
    kept, again = BestDev(), BestDev()
    kept.offer(4, 0.5, [torch.ones(2)])
    again.load_state_dict(kept.state_dict())
    assert (again.step, again.score) == (4, 0.5) and torch.equal(again.parameters[0], torch.ones(2))


def test_without_a_point_the_weights_stay():
    weights = torch.ones(2)
    BestDev().restore([weights])
    assert torch.equal(weights, torch.ones(2))


@pytest.mark.parametrize("method, rate", [pytest.param("mezo", 0.3, marks=pytest.mark.slow), ("adamw", 0.5)])
def test_a_run_that_gets_worse_reports_its_best_point_after_the_start(cache, smoke, tmp_path, method, rate):
    """Steps that are far too long: the start is better than all that follows, but no choice of a checkpoint."""
    cell = smoke(method, learning_rate=rate, steps=20, evaluate_every=10)
    last = run_cell(copy.deepcopy(cell), tmp_path / "last.json", quiet, "cpu")
    record = run_cell(best(cell), tmp_path / "best.json", quiet, "cpu")
    losses = {point["step"]: point["dev_loss"] for point in record["curve"]}
    assert losses.keys() == {0, 10, 20} and min(losses, key=losses.get) == 0
    assert record["metrics"]["selected_step"] == min((10, 20), key=losses.get)
    assert record["metrics"]["selection"] == WORDS and last["metrics"]["selection"] == "last iterate"
    assert record["metrics"]["loss"] <= last["metrics"]["loss"]
    if record["transcript"]:  # which is of all steps, for the last iterate
        assert record["transcript"]["weights_sha256"] == last["transcript"]["weights_sha256"]


@pytest.mark.parametrize(
    "rule, rows", [("best_dev", 10**6), ("best_dev_accuracy", 10**6), ("best_dev_accuracy", 3)]
)
def test_the_first_point_with_the_highest_accuracy_or_the_least_loss_is_reported(
    cache, smoke, tmp_path, rule, rows
):
    """On as many dev rows as the curve has, which the record tells; equal accuracies leave the earlier point."""
    cell = best(smoke("adamw", learning_rate=1e-2, steps=30, evaluate_every=5), rule)
    cell["settings"] |= {"curve_examples": rows, "split": "dev"}
    record = run_cell(cell, tmp_path / "record.json", quiet, "cpu")
    metrics, points = record["metrics"], [point for point in record["curve"] if point["step"]]
    key, better = ("dev_loss", min) if rule == "best_dev" else ("dev_accuracy", max)
    values = [point[key] for point in points]
    assert metrics["selected_step"] == points[values.index(better(values))]["step"]
    assert metrics["selection"] == RULES[rule]
    assert (metrics["selection_examples"], metrics["dev_examples"]) == (min(rows, 60), 60)
    if rows > 3:  # and the two rules differ here
        assert metrics[key.removeprefix("dev_")] == pytest.approx(better(values), rel=1e-6)
        first = {
            values.index(choose(values))
            for choose, values in (
                (min, [point["dev_loss"] for point in points]),
                (max, [point["dev_accuracy"] for point in points]),
            )
        }
        assert len(first) == 2


def test_no_dev_rows_are_no_choice(cache, smoke, monkeypatch):
    cell = best(smoke("mezo"))

    def without_dev(*arguments):
        examples = encode(*arguments)
        return examples | {"dev": examples["dev"][np.arange(0)]}

    encode = encoding.encode
    monkeypatch.setattr(encoding, "encode", without_dev)
    with pytest.raises(UsageError, match="iterate best_dev looks at dev, of which there are no rows"):
        Setup(cell, quiet, "cpu")
    cell["settings"] |= {"iterate": "last", "split": "dev"}
    with pytest.raises(UsageError, match="there are no rows of split dev: evaluate another"):
        Setup(cell, quiet, "cpu")


@pytest.mark.parametrize(
    "rule, method",
    [
        *(("best_dev", "adamw"), ("accounted", "dpzero")),
        pytest.param("accounted", "dp_adam", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_reports_the_same_point(cache, smoke, tmp_path, monkeypatch, rule, method):
    cell = best(smoke(method, learning_rate=5e-2, steps=30, evaluate_every=10), rule)
    whole = run_cell(copy.deepcopy(cell), tmp_path / "whole.json", quiet, "cpu")

    class Killed(BaseException): ...

    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    interrupt_at(monkeypatch, 25, Killed)
    with pytest.raises(Killed):
        run_cell(copy.deepcopy(cell), tmp_path / "killed.json", quiet, "cpu")
    monkeypatch.undo()
    monkeypatch.setenv("DPZERO_CACHE", str(cache))
    again = run_cell(copy.deepcopy(cell), tmp_path / "killed.json", quiet, "cpu")
    assert again["metrics"] == whole["metrics"]
    assert again["privacy"] == whole["privacy"]


# --- a private choice


def test_a_private_choice_takes_a_point_of_the_curve_and_says_what_it_cost(cache, smoke, tmp_path):
    cell = best(smoke("dp_adam", learning_rate=5e-2, evaluate_every=5), "accounted")
    record = run_cell(cell, tmp_path / "record.json", quiet, "cpu")
    metrics, privacy = record["metrics"], record["privacy"]
    assert metrics["selection"] == "dev checkpoint by a private choice (accounted)"
    assert metrics["selected_step"] in (5, 10, 15, 20) and metrics["candidates"] == 4
    assert privacy["choice"] == {"mechanism": "permute and flip", "epsilon": 2.0}
    assert (
        privacy["epsilon_spent"] == 2.0
    )  # of the choice, for dev rows; training, for the others, spent as much or less
    assert privacy["steps"] == 20


def test_with_much_epsilon_the_choice_is_the_best_on_dev(cache, smoke, tmp_path, monkeypatch):
    """And the reported score is that of the weights that were chosen."""
    asked, choose = [], Budget.choose
    monkeypatch.setattr(
        Budget, "choose", lambda self, counts, epsilon: asked.append(counts) or choose(self, counts, 1e4)
    )
    cell = best(smoke("dp_adam", learning_rate=5e-2, evaluate_every=5), "accounted")
    cell["settings"] |= {"split": "dev", "curve_examples": 10**6}
    record = run_cell(cell, tmp_path / "record.json", quiet, "cpu")
    (counts,), metrics = asked, record["metrics"]
    curve = {point["step"]: point["dev_accuracy"] for point in record["curve"] if point["step"]}
    rows = {step: accuracy * metrics["examples"] for step, accuracy in curve.items()}
    assert rows == pytest.approx(counts) and len(set(counts.values())) > 1
    assert metrics["accuracy"] == max(curve.values()) == curve[metrics["selected_step"]]


@pytest.mark.parametrize(
    "method, lost",
    [
        *(("dpzero", False), ("dp_adam", True)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("dpzero", True), ("dp_adam", False))),
    ],
)
def test_a_run_that_dies_keeps_its_candidates_and_its_choice(
    cache, smoke, tmp_path, monkeypatch, method, lost
):
    """Once in a step, once after the choice; or the state is lost, of which a transcript makes good."""
    cell = best(smoke(method, learning_rate=5e-2, steps=30, evaluate_every=10), "accounted")
    whole, out = (
        run_cell(copy.deepcopy(cell), tmp_path / "whole.json", quiet, "cpu"),
        tmp_path / "killed.json",
    )

    class Killed(BaseException): ...

    def die_after_choice(self, *arguments):
        raise Killed(choose(self, *arguments))

    choose, chosen = Budget.choose, []
    for stop in (
        lambda patch: interrupt_at(patch, 25, Killed),
        lambda patch: patch.setattr(Budget, "choose", die_after_choice),
    ):
        with monkeypatch.context() as patch, pytest.raises(Killed) as raised:
            stop(patch)
            run_cell(copy.deepcopy(cell), out, quiet, "cpu")
        chosen += raised.value.args
        if lost:
            (tmp_path / "killed.checkpoint" / "state.pt").unlink(missing_ok=True)
    again = run_cell(copy.deepcopy(cell), out, quiet, "cpu")
    assert again["metrics"] == whole["metrics"] and again["privacy"] == whole["privacy"]
    assert [again["metrics"]["selected_step"]] == chosen and again["metrics"]["candidates"] == 3


@pytest.mark.parametrize("rule", ["accounted", "best_dev"])
def test_a_replay_gives_the_model_that_is_reported(cache, smoke, tmp_path, monkeypatch, rule):
    """Not the last one: its score on test is that of the record."""
    monkeypatch.setattr(Budget, "choose", lambda self, counts, epsilon: 10)
    monkeypatch.setattr(BestDev, "offer", first_alone(BestDev.offer))
    out = tmp_path / "record.json"
    cell = best(smoke("dpzero", learning_rate=5e-2, steps=30, evaluate_every=10), rule)
    record = run_cell(copy.deepcopy(cell), out, quiet, "cpu")
    assert record["metrics"]["selected_step"] == 10
    answer = replay_record(out, tmp_path / "model.safetensors", "cpu")
    assert answer["match"] and answer["steps"] == 30
    setup = Setup(cell, quiet, "cpu")
    model = setup.model()
    tensors = load_file(tmp_path / "model.safetensors")
    assert not model.load_state_dict(tensors, strict=False).unexpected_keys
    assert setup.loss.evaluate(model, setup.examples["test"])["loss"] == record["metrics"]["loss"]


def first_alone(offer):
    def first(self, step, loss, parameters):
        if step == 10:
            offer(self, step, loss, parameters)

    return first


# --- planning


def test_a_cell_names_the_iterate_only_where_it_is_not_the_last(write):
    cells = write(
        "one",
        "extends: smoke\nmethods: {mezo: {learning_rate: 1.0}, dpzero: {learning_rate: 1.0, clip: 1}}\n",
    )
    assert not any("iterate" in cell["settings"] for cell in cells.values())
    cells = write("two", "extends: smoke\nsettings: {iterate: best_dev}\n")
    assert {c["settings"].get("iterate") for c in cells.values() if c["method"] != "zero_shot"} == {
        "best_dev"
    }
    (zero_shot,) = (c for c in cells.values() if c["method"] == "zero_shot")
    assert "iterate" not in zero_shot["settings"]


def test_methods_without_noise_choose_without(write):
    cells = write("one", "extends: smoke\nsettings: {iterate: accounted}\n").values()
    rules = {
        (cell["epsilon"] in ("2", "8")): cell["settings"].get("iterate")
        for cell in cells
        if cell["epsilon"] != "0"
    }
    assert rules == {True: "accounted", False: "best_dev"}


def test_a_release_may_choose_with_noise(write):
    settings = "{iterate: accounted, noise_key: secret}"
    cells = write("one", f"extends: smoke\nsettings: {settings}\n", methods="dpzero").values()
    assert {cell["settings"]["iterate"] for cell in cells} == {"accounted"}


@pytest.mark.parametrize(
    "settings, words",
    [
        ("{iterate: accounted, evaluate_every: 0}", "give evaluate_every below 30 steps"),
        ("{iterate: accounted, evaluate_every: 30}", "give evaluate_every below 30 steps"),
        (
            "{iterate: accounted, curve_examples: 0}",
            "iterate accounted needs dev examples: give curve_examples",
        ),
        (
            "{iterate: accounted, as_published: true}",
            "as_published accounts for no choice: leave iterate out",
        ),
        ("{iterate: best_dev, noise_key: secret}", "dev rows are private and the choice is not accounted"),
        (
            "{iterate: best_dev, curve_examples: 0}",
            "iterate best_dev needs dev examples: give curve_examples",
        ),
        (
            "{iterate: best_dev_accuracy, noise_key: secret}",
            "iterate best_dev_accuracy with noise_key secret, but dev rows are private",
        ),
        ("{iterate: best}", "unknown value of iterate 'best': did you mean 'best_dev'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(write, settings, words):
    with pytest.raises(UsageError, match=words):
        write("one", f"extends: smoke\nsettings: {settings}\n", methods="dpzero")


@pytest.mark.parametrize("rule", ["accounted", "best_dev_accuracy"])
def test_a_task_without_right_answers_has_no_such_choice(write, rule):
    with pytest.raises(
        UsageError, match=f"task squad: iterate {rule} counts right answers, but f1 is no such"
    ):
        write(
            "one",
            f"extends: smoke\ntasks: [squad]\nmodels: [tiny-causal]\nsettings: {{iterate: {rule}}}\n",
            methods="dpzero",
        )


def test_a_cell_by_hand_may_not_choose_on_dev_in_a_release():
    (cell,) = sweep.load("smoke", methods="dpzero", epsilons="2").values()
    cell["settings"] |= {"iterate": "best_dev", "noise_key": "secret"}
    with pytest.raises(UsageError, match="take iterate accounted, or leave it out"):
        sweep.complete(cell)
