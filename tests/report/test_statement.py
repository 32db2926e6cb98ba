"""The privacy statement: what it says of common facts, of each promise, of runs that went astray; the same to the byte."""

from __future__ import annotations

import math
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpzero.report import records
from dpzero.report.statement import WIDTH, _upper, statement

HEADINGS = [
    "Threat model",
    "Unit and adjacency",
    "What is released",
    "Accounting, and whether its assumptions hold",
    "Guarantee of each run",
    "Tuning",
    "Noise",
    "Composition",
    "Not covered",
]


def statement_text(runs: list[dict], expected: list[str] | None = None) -> str:
    """The statement without its line breaks, to be searched for sentences."""
    return " ".join(statement(records.to_frame(runs, expected), "quick").split())


def changed(run: dict, section: str = "privacy", **values: object) -> dict:
    run[section] |= values
    return run


@pytest.fixture
def three(record) -> list[dict]:
    """Three seeds of one promise."""
    return [changed(record(seed=seed), epsilon_spent=1.99, gdp_mu=0.5) for seed in range(3)]


# --- shape


def test_the_headings_come_in_order(sweep):
    text = statement(records.to_frame(sweep()), "quick")
    assert re.findall("^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert text.startswith("# Privacy statement of sweep quick\n") and text.endswith(".\n")


def test_no_line_is_longer_than_the_width(sweep):
    assert all(len(line) <= WIDTH for line in statement(records.to_frame(sweep()), "quick").splitlines())


def test_files_and_their_frame_give_the_same_statement(sweep, written):
    runs = sweep(seeds=1)
    expected = [run["run"] for run in runs]
    assert statement(records.load(written(runs), expected), "quick") == statement(
        records.to_frame(runs), "quick"
    )


def test_order_and_times_of_the_runs_change_no_byte(sweep, written):
    runs, again = sweep(), sweep()
    random.Random(0).shuffle(again)
    for run in again:
        run["time"] = {key: 1.7 * (value or 0) for key, value in run["time"].items()}
        run["memory"]["peak_resident_bytes"] += 12345
    assert statement(records.load(written(again)), "quick") == statement(records.load(written(runs)), "quick")


# --- one answer or several


def test_a_shared_answer_appears_once(sweep):
    text = statement_text(sweep())
    for words in ("Unit: one example", "Neighbours: add or remove one unit", "Sampler that ran: Poisson"):
        assert text.count(words) == 1


def test_different_answers_name_their_methods(record):
    pure = changed(record("dp_zo_laplace_pure"), accountant="closed form")
    text = statement_text([record(), record("dp_sgd"), pure])
    assert "Accountant (DP-ZO (Laplace, pure eps)): closed form." in text
    assert "Accountant (DPZero, DP-SGD): dp-accounting 0.6.0 PLD" in text
    assert "Released (DP-ZO (Laplace, pure eps), DPZero): in each step one noisy scalar a direction" in text
    assert "Released (DP-SGD): in each step the noisy sum of the clipped gradients" in text


def test_names_are_as_long_as_they_must_be(record):
    def sampled_otherwise(*arguments, **keywords) -> dict:
        return changed(record(*arguments, **keywords), sampling="without_replacement")

    by_epsilon = statement_text([record(epsilon="2"), sampled_otherwise(epsilon="6")])
    assert "Sampler that ran (DPZero, ε = 6): without replacement" in by_epsilon
    by_task = statement_text([record(), sampled_otherwise(task="bbc")])
    assert "Sampler that ran (DPZero, ε = 2, bbc with minilm): without replacement" in by_task
    by_run = statement_text([record(), sampled_otherwise(seed=1)])
    assert "Sampler that ran (r8/minilm/dpzero/eps-2/seed-1): without replacement" in by_run


def test_the_unit_and_the_neighbours_are_those_of_the_record(record):
    text = statement_text([changed(record(), unit="user", adjacency="replace_one")])
    assert "Unit: one user" in text and "Neighbours: replace one unit by another" in text


# --- the promise


def test_a_promise_is_epsilon_delta_mu_and_renyi_of_the_worst_seed(three):
    three[1] = changed(three[1], epsilon_spent=1.998765432, gdp_mu=0.51, epsilon_spent_rdp=2.2)
    text = statement_text(three)
    assert (
        "**DPZero, ε = 2** (r8 with minilm): under a secret key each run would be (1.9988, 1e-05)-DP;" in text
    )
    assert "μ = 0.51; by the looser Rényi bound ε = 2.2." in text
    assert "Gaussian noise of 0.83 clip on each sum, clip 1, 150 steps." in text
    assert "n = 4,937, batch size 16, rate 0.003241, δ = 1e-05, δ n = 0.04937." in text


def test_each_method_and_epsilon_has_its_block(sweep):
    text = statement_text(sweep())
    assert text.count("each run would be") == 12  # six methods at two epsilons
    assert text.count("3 seeds: together at most") == 12


def test_a_pure_promise_has_no_delta(record):
    text = statement_text([record("dp_zo_laplace_pure")])
    assert "(1.99, 0)-DP." in text and "δ = 0." in text


@given(st.floats(1e-6, 1e3))
def test_a_bound_is_rounded_up_and_by_little(value):
    assert value - 1e-9 <= float(_upper(value)) <= value + 1.0001e-4


def test_a_number_that_is_short_but_for_a_rounding_stays_short():
    assert (_upper(2.0000000000000004), _upper(6.0), _upper(1.99990001)) == ("2", "6", "2")


def test_a_delta_too_large_for_the_data_is_flagged(record):
    assert "δ n = 1.234, too large to protect every unit" in statement_text([changed(record(), delta=2.5e-4)])
    assert "too large" not in statement_text([record()])


def test_a_run_without_a_bound_has_no_number(record):
    text = statement_text([changed(record(), epsilon_spent=None), record(seed=1)])
    assert "unbounded: not every run has a bound" in text
    assert "each run would be without a bound" in statement_text([changed(record(), epsilon_spent=None)])


def test_seeds_of_other_settings_have_a_block_of_their_own(record):
    text = statement_text([record(), changed(record(seed=1), noise_scale=0.2)])
    assert text.count("**DPZero, ε = 2**") == 2 and "noise of 0.2 clip" in text


# --- runs that went astray


def test_a_run_that_stopped_early_reports_its_steps_and_epsilon(three, record):
    three[1] = changed(record(seed=1, status="diverged"), steps=40, epsilon_spent=0.81)
    text = statement_text(three)
    assert "Seed 1: 40 releases of 150 planned (diverged); spent ε = 0.81." in text
    assert "Seed 0" not in text and "3 private runs" in text
    out = changed(record(seed=1, status="oom"), steps=7, epsilon_spent=0.3)
    assert "Seed 1: 7 releases of 150 planned (ran out of memory); spent ε = 0.3." in statement_text(
        [three[0], out]
    )


def test_a_run_that_released_more_than_planned_says_why(record):
    text = statement_text([changed(record(), steps=163, epsilon_spent=2.2)])
    assert "Seed 0: 163 releases of 150 planned (finished; it was interrupted" in text
    assert "(2.2, 1e-05)-DP" in text


def test_runs_that_released_nothing_are_counted_apart(three, record):
    nothing = changed(record(seed=3, status="oom"), steps=0, epsilon_spent=0.0)
    silent = record(seed=4)
    silent["privacy"] = None
    text = statement_text(
        [*three, nothing, silent], ["r8/minilm/dpzero/eps-2/seed-5", "r8/minilm/dpzero/eps-2/seed-6"]
    )
    assert "3 private runs, 0 of them valid as a private release." in text
    assert "1 further run ended before the first release and spent nothing." in text
    assert "1 further run whose record does not say what was spent." in text
    assert "2 further runs planned without a record yet." in text
    assert "3 seeds: together" in text


def test_without_a_private_run_there_is_no_guarantee(record):
    text = statement_text([record("mezo", "inf")])
    assert text == "# Privacy statement of sweep quick No private method in these runs: no guarantee."


# --- composition


def test_seeds_and_methods_compose(three, record):
    text = statement_text(
        [
            *three,
            changed(record("dp_sgd"), epsilon_spent=1.5),
            changed(record(task="bbc"), epsilon_spent=1.25),
        ]
    )
    assert "3 seeds: together at most (5.97, 3e-05)-DP." in text
    assert "r8 (example, add_remove), 4 runs, 3 seeds: (7.47, 4e-05)-DP." in text
    assert "bbc (example, add_remove), 1 run, 1 seed: (1.25, 1e-05)-DP." in text


def test_guarantees_for_different_neighbours_do_not_compose(three, record):
    text = statement_text([*three, changed(record("dp_sgd"), adjacency="replace_one", epsilon_spent=1.5)])
    assert "r8 (example, add_remove), 3 runs, 3 seeds: (5.97, 3e-05)-DP." in text
    assert "r8 (example, replace_one), 1 run, 1 seed: (1.5, 1e-05)-DP." in text


# --- noise, and what is not covered


def test_a_published_key_is_no_private_release(record):
    text = statement_text([record()])
    assert "1 private run, 0 of them valid" in text
    assert "Secrecy of batches and noise: fails, since the key is published" in text
    assert "a benchmark on public data, no private release" in text
    assert "without noise, learning curves (losses of batches, accuracies on dev), times" in text


def test_a_secret_key_is_a_release_without_logs(record):
    text = statement_text([changed(record(), noise_key="secret", valid_release=True)])
    assert "1 private run, 1 of them valid" in text and "each run is (1.99, 1e-05)-DP" in text
    assert "Secrecy of batches and noise: holds" in text and "ALLOWED_IN_A_RELEASE" in text
    assert "benchmark" not in text


def test_secret_and_published_keys_have_separate_answers(record):
    text = statement_text([changed(record(), noise_key="secret", valid_release=True), record("dp_sgd")])
    assert "Secrecy of batches and noise (DPZero): holds" in text
    assert "Secrecy of batches and noise (DP-SGD): fails" in text
    assert "2 private runs, 1 of them valid" in text


def test_the_arithmetic_says_what_it_defends_against(record):
    assert "does not defend against attacks on the low-order bits" in statement_text([record()])
    exact = statement_text([changed(record(), noise_arithmetic="exact")])
    assert "bits tell nothing more" in exact and "does not defend" not in exact
    old = record()
    del old["privacy"]["noise_arithmetic"]
    assert "Arithmetic: not in the record." in statement_text([old])


def test_a_reproduction_of_public_code_claims_no_amplification(record):
    text = statement_text([changed(record(), sampling="shuffled_epochs", adjacency="replace_one")])
    assert "No amplification by sampling is claimed" in text and "reproduced for comparison" in text
    assert "the sampler that is accounted is the one that draws" not in text


def test_runs_without_noise_on_the_same_data_are_named(record):
    text = statement_text([record(), record("mezo", "inf"), record("adamw", "inf"), record("zero_shot", "0")])
    assert "2 runs of this sweep without noise (AdamW, MeZO)" in text


def test_prompts_that_hold_private_examples_are_without_noise_though_nothing_is_trained(record):
    text = statement_text([record(), record("in_context", "inf"), record("zero_shot", "0")])
    assert "1 run of this sweep without noise (In-context learning)" in text


@pytest.mark.parametrize("task", ["", "tweets"])
def test_public_rows_are_released_and_covered_by_no_epsilon(record, task):
    runs = [record("pazo", "2", seed) for seed in (0, 1)]
    for run in runs:
        run["cell"]["settings"] |= {"public_examples": 256, "public_task": task}
    text = statement_text(runs)
    assert (
        "one vector of noisy scalars" in text
        and "and of the public rows, which are read without noise" in text
    )
    assert (
        f"Not covered: 256 public rows{' of task tweets' if task else ', which are training rows of the'}"
        in text
    )
    assert ("for rows that none of them reads as public" in text) is (task == "")


def test_selective_privacy_is_of_the_words_that_the_policy_takes_out(record):
    run = changed(record("dp_sgd", "2"), definition="selective", adjacency="replace_one")
    text = statement_text([run])
    assert "Unit: the sensitive words of one example" in text
    assert "data sets of equally many rows that are the same after the policy" in text
    assert "and of the redacted rows, which a first pass reads without noise" in text
    assert "Not covered: all other words, and every word that the policy misses." in text


def test_noisy_counts_of_rows_and_written_tokens_are_named_as_released(record):
    counted = changed(record("dp_sgd", "2"), noise_scales="3 for the counts, 1 for the gradient")
    assert "and the noisy counts of examples by row of the embeddings" in statement_text([counted])
    written = changed(record("dpzero", "2"), "metrics", demonstrations="Tweet: ...")
    assert "clipped probabilities of the next token" in statement_text([written])


def test_a_score_on_private_examples_is_not_covered(record):
    tuned = changed(record(), "cell", settings={"split": "dev", "steps": 150})
    assert "Not covered: the score on dev" in statement_text([tuned])
    assert "Not covered: the score on" not in statement_text([record()])


def test_mixed_sources_give_a_warning(record):
    other = changed(record(seed=1), "provenance", code="f00d" * 16)
    assert "Mixed source" in statement_text([record(), other])


def test_every_number_comes_from_a_record(sweep):
    """Every decimal number stands in a record, up to rounding, or is a sum or a product of such."""
    runs = [run for run in sweep(seeds=1, epsilons=("2",)) if run["privacy"]]
    block = statement_text(runs).split("## Guarantee of each run")[1].split("## Tuning")[0]
    known = {float(v) for run in runs for v in run["privacy"].values() if isinstance(v, int | float)} | {
        150,
        60,
    }
    for number in re.findall(
        r"(?<![\w.])\d+(?:\.\d+)?(?:e-\d+)?(?![\w.])", re.sub(r"\*\*.*?\*\*|1e-05", "", block)
    ):
        assert any(math.isclose(float(number), k, rel_tol=1e-3, abs_tol=1e-4) for k in known), number
