"""`DPZeroTrainer`: a transformers Trainer that steps privately on the budget's batches and logs nothing of them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback, TrainingArguments

from dpzero import Budget, DPZero, DPZeroTrainer, losses, replay
from dpzero.privacy import RunKey
from dpzero.zeroth_order.model_requirements import trainable
from dpzero.zeroth_order.transcript import read
from tests.test_models_of_users import EXAMPLES, STEPS, hub, texts

ROWS = [row | {"labels": row["input_ids"].where(row["attention_mask"] == 1, -100)} for row in texts()]


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return hub("gpt2", AutoModelForCausalLM)


def budget(**options) -> Budget:
    sizes = {"dataset_size": EXAMPLES, "batch_size": 6, "steps": STEPS}
    return Budget.calibrated(epsilon=2, delta=1e-3, **sizes, **{"key": RunKey.published(0)} | options)


def arguments(folder, **change) -> TrainingArguments:
    settings = {"learning_rate": 1e-3, "warmup_steps": 2, "logging_steps": 2, "save_steps": 5, "seed": 3}
    settings |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True}
    return TrainingArguments(str(folder), **settings | change)


def trainer(folder, given: Budget | None = None, callbacks=(), **change) -> DPZeroTrainer:
    return DPZeroTrainer(
        model(),
        arguments(folder, **change),
        budget=given or budget(),
        loss=losses.causal_lm(),
        clip=10.0,
        train_dataset=ROWS,
        eval_dataset=ROWS[:4],
        callbacks=list(callbacks),
    )


def weights(network: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def same(these, those) -> bool:
    return all(torch.equal(a, b) for a, b in zip(these, those, strict=True))


def test_it_takes_dpzeros_steps_at_the_rates_of_its_scheduler(tmp_path):
    me = trainer(tmp_path / "out")
    me.dpzero.write_transcript(tmp_path / "t")
    me.train()
    rates = read(tmp_path / "t").rates[:, 0].tolist()
    assert rates == pytest.approx([0, 5e-4, *(1e-3 * (1 - k / 8) for k in range(8))])  # warm-up, then linear
    given, plain = budget(), model().eval()
    optimizer = DPZero(plain, losses.causal_lm(), given, learning_rate=1e-3, clip=10.0, seed=3)
    for rate, batch in zip(rates, given.loader(ROWS), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step(batch)
    assert same(weights(me.model), weights(plain)) and me.dpzero.budget.epsilon_spent() <= 2
    base = model()
    replay(trainable(base.parameters()), tmp_path / "t")
    assert same(weights(base), weights(plain))


def test_it_resumes_from_a_checkpoint_to_the_bit(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    again = trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert again.state.global_step == STEPS == len(again.dpzero.budget.ledger)
    assert same(weights(again.model), weights(whole.model))


def test_a_killed_run_under_a_secret_key_counts_what_it_released_and_takes_the_steps_that_are_left(tmp_path):
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 7:
                raise KeyboardInterrupt

    first = budget(key=None, ledger=tmp_path / "ledger")
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "out", first, [Kill()]).train()
    first.close()
    second = budget(key=None, ledger=tmp_path / "ledger")
    me = trainer(tmp_path / "out", second)
    me.train(resume_from_checkpoint=True)
    assert (
        len(second.ledger) == STEPS and me.state.global_step == 5 + 3
    )  # two steps were lost, not their epsilon


def test_nothing_that_depends_on_private_batches_is_logged_or_saved(tmp_path):
    me = trainer(tmp_path / "out", include_num_input_tokens_seen="all", eval_strategy="steps", eval_steps=5)
    output = me.train()
    keys = {key for entry in me.state.log_history for key in entry}
    evaluated = {key for key in keys if key.startswith("eval_")}
    assert "eval_loss" in evaluated and keys - evaluated <= {"epsilon", "learning_rate", "epoch", "step"} | {
        "num_input_tokens_seen"
    }
    assert all(entry.get("num_input_tokens_seen", 0) == 0 for entry in me.state.log_history)
    assert 1.9 < me.state.log_history[-1]["epsilon"] <= 2
    assert math.isnan(output.training_loss) and not {"train_loss", "train_runtime"} & output.metrics.keys()
    state = json.loads((tmp_path / "out" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text("utf-8"))
    assert state["total_flos"] == 0 and state["num_input_tokens_seen"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps changes the step"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size changes the step"),
    ],
)
def test_arguments_that_change_the_step_are_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path / "out", **change)


def test_rows_of_a_data_set_give_the_same_steps_without_the_columns_that_the_model_does_not_take(tmp_path):
    rows = [{key: field.tolist() for key, field in row.items()} | {"source": "a film"} for row in ROWS]
    ends = []
    for given in (ROWS, Dataset.from_list(rows)):
        me = DPZeroTrainer(
            model(),
            arguments(tmp_path),
            budget=budget(),
            loss=losses.causal_lm(),
            clip=10.0,
            train_dataset=given,
        )
        me.train()
        ends.append(weights(me.model))
    assert same(*ends)
