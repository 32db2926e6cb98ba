"""The sweeps of the papers: each cell has the settings that its paper states, and every cell of DPZero's tables is one of them.

The figures are those of the papers and their public code: DPZero's tables 8 (RoBERTa) and 10 (OPT), sections 5.2, 5.3, B.2 and B.3,
MeZO's script for OPT's batch. The cells that run here have stand-ins for models and rows.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.plan import sweep
from dpzero.report import published
from dpzero.run.checkpoint_selection import RULES

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("paper-roberta", "paper-roberta-sphere", "paper-opt", "paper-dpzo")
OTHERS = (
    "paper-mezo",
    "paper-mezo-large",
    "paper-mezo-roberta",
    "paper-mezo-roberta-16",
    "paper-aggzo",
    "paper-aggzo-opt",
    "paper-zoso",
)
GRIDS = ("paper-roberta-grid", "paper-opt-grid", "paper-dpzo-grid")
ROWS = Path(
    os.environ.get("DPZERO_DATA_DIR") or ROOT.parent / "shared" / "data"
)  # real ones, where there are any


@functools.cache
def cells_of(name: str) -> dict[str, dict]:
    return sweep.load(name)


def axis(cells: dict[str, dict], key: str) -> set:
    return {cell[key] for cell in cells.values()}


def settings(cells: dict[str, dict], *names: str, **wanted: object) -> set[tuple]:
    """What the cells with these values have of these settings."""
    return {
        tuple(cell["settings"].get(name) for name in names)
        for cell in cells.values()
        if all(cell[key] == value for key, value in wanted.items())
    }


# --- what is stated


def test_every_number_of_dpzeros_tables_has_its_cell():
    """But for DPGD-0th, whose noise is a vector as long as the model: it is in the sweep `quadratic` alone."""
    cells = {run.rpartition("/")[0] for name in NAMES for run in cells_of(name)}
    wanted = [n for n in published.read() if n.paper == "DPZero"]
    assert len(wanted) == 127
    for number in wanted:
        assert number.cell in cells


def test_roberta_has_six_tasks_two_epsilons_and_the_seeds_of_the_paper():
    cells = cells_of("paper-roberta")
    assert axis(cells, "task") == {"sst2", "sst5", "snli", "mnli", "rte", "trec"}
    assert axis(cells, "model") == {"roberta-large"} and axis(cells, "epsilon") == {"0", "2", "6", "inf"}
    assert {c["seed"] for c in cells.values() if c["method"] != "zero_shot"} == {42, 13, 21}


@pytest.mark.parametrize("method", ["mezo", "dpzero", "dpzero_as_published"])
def test_zeroth_order_on_roberta_is_table_8(method):
    names = ("shots", "steps", "batch_size", "smoothing", "learning_rate", "tune", "compute", "iterate")
    wanted = {(512, 10000, 64, 1e-3, 1e-6, "full", "float32", None)}
    assert settings(cells_of("paper-roberta"), *names, method=method) == wanted


def test_private_methods_have_the_papers_delta():
    for cells in map(cells_of, NAMES):
        deltas = {
            c["settings"]["delta"]
            for c in cells.values()
            if "delta" in c["settings"] and "pure" not in c["method"]
        }
        assert deltas == {1e-5}


def test_sentence_pairs_have_256_tokens_and_sentences_128():
    for task, length in {"sst2": 128, "sst5": 128, "trec": 128, "snli": 256, "mnli": 256, "rte": 256}.items():
        assert settings(cells_of("paper-roberta"), "max_length", task=task) == {(length,)}


def test_first_order_methods_are_of_section_b2():
    cells, names = cells_of("paper-roberta"), ("steps", "batch_size", "tune", "learning_rate", "clip")
    rates, clips = {5e-5, 1e-4, 5e-4, 1e-3}, {0.1, 0.5, 1, 10}
    for method, tune in {"adamw": "full", "lora": "lora", "dp_adamw": "full", "dp_lora": "lora"}.items():
        ((steps, size, tuned, rate, clip),) = settings(cells, *names, method=method)
        assert (steps, size, tuned) == (1000, 64, tune) and rate in rates
        assert clip in clips if method.startswith("dp") else clip is None


@pytest.mark.parametrize("name, rate", [("paper-opt", 1e-7), ("paper-roberta", 1e-6)])
def test_the_clip_is_a_point_of_the_papers_grid(name, rate):
    grid = {"paper-opt": {10, 50, 100, 200}, "paper-roberta": {50, 100, 150, 200, 250, 300, 400}}[name]
    ((clip, learning_rate),) = settings(cells_of(name), "clip", "learning_rate", method="dpzero")
    assert clip in grid and learning_rate == rate


@pytest.mark.parametrize("directions", [16, 64, 256])
def test_the_clip_of_dp_aggzo_is_a_point_of_its_papers_grid(directions):
    ((clip,),) = settings(cells_of("paper-aggzo"), "clip", method=f"dp_aggzo_{directions}")
    assert clip in {a * b for a in (1, 1.25) for b in (1, 2, 3, 4, 6, 8, 10, 20, 40)}


def test_sweeps_say_whose_seeds_they_have_and_what_of_dp_zo_was_not_read():
    for name in ("paper-opt", "paper-roberta"):
        assert "the seeds that it reports" in sweep.read(name)["selection"]
    assert "script" not in sweep.read("paper-opt-grid")["description"]
    assert "tables were not read" in sweep.read("paper-dpzo")["description"]


def test_opt_is_table_10_with_the_checkpoint_of_its_code():
    cells = cells_of("paper-opt")
    assert axis(cells, "task") == {"sst2", "boolq", "squad", "drop"}
    assert axis(cells, "model") == {"opt-1.3b", "opt-2.7b", "opt-6.7b"}
    assert {c["seed"] for c in cells.values() if c["method"] != "zero_shot"} == {0, 29, 83}
    names = ("train_examples", "steps", "batch_size", "smoothing", "tune", "max_length")
    names += ("iterate", "evaluate_every", "curve_examples")
    wanted = {(1000, 20000, 8, 1e-3, "full", 2048, "best_dev", 4000, 500)}
    assert settings(cells, *names, method="dpzero") == settings(cells, *names, method="mezo") == wanted


def test_dp_zo_clips_before_it_divides_and_has_pure_epsilon_4():
    cells = cells_of("paper-dpzo")
    for mechanism in ("gaussian", "laplace", "laplace_pure"):
        names = ("clip", "train_examples", "batch_size", "steps")
        assert settings(cells, *names, method=f"dp_zo_{mechanism}") == {(0.05, 1000, 16, 20000)}
    assert settings(cells, "mechanism", "delta", method="dp_zo_laplace_pure") == {("laplace", 0.0)}
    assert {c["epsilon"] for c in cells.values() if c["method"] == "dp_zo_laplace_pure"} == {"1", "4"}


# --- grids, and narrowing


@pytest.mark.parametrize(
    "name, method, grid",
    [
        ("paper-roberta-grid", "dpzero", {"clip": {50, 100, 150, 200, 250, 300, 400}}),
        ("paper-roberta-grid", "mezo", {"learning_rate": {1e-7, 1e-6, 1e-5}}),
        ("paper-roberta-grid", "adamw", {"learning_rate": {5e-5, 1e-4, 5e-4, 1e-3}}),
        (
            "paper-roberta-grid",
            "dp_lora",
            {"learning_rate": {5e-5, 1e-4, 5e-4, 1e-3}, "clip": {0.1, 0.5, 1, 10}},
        ),
        ("paper-opt-grid", "dpzero", {"learning_rate": {1e-6, 1e-7}, "clip": {10, 50, 100, 200}}),
    ],
)
def test_a_grid_is_the_published_one_on_dev(name, method, grid):
    cells = [c for c in cells_of(name).values() if c["method"].startswith(f"{method}_")]
    for key, values in grid.items():
        assert {cell["settings"][key] for cell in cells} == values
    points = 1
    for values in grid.values():
        points *= len(values)
    assert len({cell["method"] for cell in cells}) == points
    assert {cell["settings"]["split"] for cell in cells} == {"dev"}


@pytest.mark.parametrize("name", [*NAMES, *OTHERS, *GRIDS])
def test_each_narrows_to_one_cell(name):
    (*_, cell) = cells_of(name).values()
    chosen = {f"{key}s": cell[key] for key in ("task", "model", "method", "seed")}
    chosen |= {} if cell["epsilon"] == "inf" else {"epsilons": cell["epsilon"]}
    assert list(sweep.load(name, **chosen).values()) == [cell]


def test_every_shipped_language_sweep_names_how_its_settings_were_chosen():
    plans = {name: sweep.read(name) for name in sweep.names()}
    rules = {
        name: sweep.TUNING[plan["tuning"]] for name, plan in plans.items() if plan["experiment"] == "language"
    }
    stated = "settings as the paper states them, else defaults of its code or ours (not tuned here; choices not accounted)"
    tries, dev = "every try of a grid, none chosen", "settings chosen on dev (not accounted)"
    grids = dict.fromkeys((name for name in rules if name.endswith("-grid")), tries)
    elsewhere = "settings chosen on dev rows of other tasks, or fixed beforehand (not accounted)"
    on_dev = dict.fromkeys(("quick", "biases", "heads", "heads-lm", "lora", "full"), dev)
    on_others = ("biases-tasks", "heads-embedded", "heads-lm-embedded", "rte-body")
    wanted = (
        grids
        | on_dev
        | dict.fromkeys(on_others, elsewhere)
        | dict.fromkeys((*NAMES, *OTHERS, "adapters-lm"), stated)
    )
    wanted["smoke"] = "settings fixed beforehand"
    assert {name: rules[name] for name in wanted} == wanted  # a user may add sweeps


def test_a_sweep_that_names_no_rule_is_refused(write):
    with pytest.raises(
        UsageError, match="sweep one does not say how its settings were chosen: give `tuning`"
    ):
        write("one", "tasks: [toy]\nmodels: [tiny-encoder]\nseeds: [0]\nmethods: {mezo: {}}\n")


def test_every_number_that_is_read_has_its_cell_with_as_many_examples_a_class():
    """Numbers that are not read say why in the column `left_out` of published.csv."""
    shots: dict[str, set[int]] = {}
    for run, cell in (pair for name in (*NAMES, *OTHERS) for pair in cells_of(name).items()):
        shots.setdefault(run.rpartition("/")[0], set()).add(cell["settings"].get("shots", 0))

    def is_declared(number: published.Published) -> bool:
        of_cell = shots.get(number.cell, set())
        return number.shots in of_cell if number.shots else bool(of_cell)

    numbers = published.read()
    assert len(numbers) == 518 and all(map(is_declared, numbers))


def test_every_setting_that_a_number_states_is_that_of_its_cell():
    """But for what this project does not have, so that these numbers get no verdict."""
    cells: dict[str, list[dict]] = {}
    for run, cell in (pair for name in (*NAMES, *OTHERS) for pair in cells_of(name).items()):
        cells.setdefault(run.rpartition("/")[0], []).append({"shots": 0, **cell["settings"]})

    def differing(number: published.Published) -> set[tuple[str, str]]:
        stated = {**number.settings, "shots": number.shots} | (
            {"steps": number.steps} if number.steps else {}
        )
        stated |= {} if number.shots else {"shots": 0}
        declared = [{"direction_law": "gaussian", **own} for own in cells[number.cell]]
        ways = [{key for key, value in stated.items() if own.get(key) != value} for own in declared]
        return {(number.cell, key) for key in min(ways, key=len)}

    differences = set().union(*map(differing, (n for n in published.read() if "/zero_shot/" not in n.cell)))
    lora = "{}/roberta-large/mezo_lora/eps-inf"
    tasks = ("sst2", "sst5", "snli", "mnli", "rte", "trec")
    assert differences == {
        *((lora.format(task), "weight_decay") for task in tasks),
        ("record/opt-13b/adamw/eps-inf", "batch_loss"),
    }


def is_as_published(cell: dict, number: published.Published) -> bool:
    """Whether a run of this cell trains the parameters and reports the checkpoint of the published run."""
    row = {f"settings.{key}": value for key, value in cell["settings"].items()}
    row["metrics.selection"] = RULES[cell["settings"].get("iterate", "last")]
    words = [word.partition(", theirs")[0] for word in published.differences(row, number)]
    return not any(
        part in word
        for word in words
        for part in ("tune", "tie embeddings", "lora head", "iterate", "checkpoint")
    )


def test_every_number_has_a_cell_that_trains_the_same_parameters_and_reports_the_same_checkpoint():
    """But for logistic regression, and for what is shown in context, which trains nothing."""
    cells: dict[str, list[dict]] = {}
    for run, cell in (pair for name in (*NAMES, *OTHERS) for pair in cells_of(name).items()):
        cells.setdefault(run.rpartition("/")[0], []).append(cell)
    numbers = [n for n in published.read() if n.cell.split("/")[2] not in ("linear_probing", "in_context")]
    assert len(numbers) > 400
    for number in numbers:
        assert any(is_as_published(cell, number) for cell in cells[number.cell]), number


@pytest.mark.parametrize("name", [*NAMES, *OTHERS, *GRIDS])
def test_roberta_is_untied_where_all_of_it_is_trained(name):
    for cell in cells_of(name).values():
        untied = (
            cell["model"] == "roberta-large"
            and cell["settings"]["tune"] == "full"
            and cell["settings"]["steps"]
        )
        assert cell["settings"].get("tie_embeddings", True) == (not untied)


def test_mezos_fine_tuning_on_opt_is_five_epochs_of_its_rows_and_looks_at_dev_after_each():
    """In batches of eight, the last one short; the learning rate falls to 0 over them."""
    rows = {n.cell: n.train_rows for n in published.read() if "/opt-13b/adamw/" in n.cell}
    assert len(rows) == 11 and {rows[f"{task}/opt-13b/adamw/eps-inf"] for task in ("cb", "wsc")} == {150, 54}
    for run, cell in sweep.load("paper-mezo", methods="adamw").items():
        how, epoch = cell["settings"], -(-rows[run.rpartition("/")[0]] // 8)
        assert (how["batch_size"], how["evaluate_every"]) == (8, epoch)
        assert how["steps"] == how["decay_steps"] == 5 * epoch


def test_mezo_on_roberta_looks_at_all_dev_rows():
    """LM-BFF draws as many dev rows as training rows."""
    for name in ("paper-mezo-roberta", "paper-mezo-roberta-16"):
        for cell in cells_of(name).values():
            labels = len(tasks.stanza(cell["task"])["words"])
            assert cell["settings"]["curve_examples"] >= cell["settings"]["shots"] * labels


def test_sweeps_are_as_the_table_of_discrepancies_says():
    assert axis(cells_of("paper-aggzo"), "seed") == {42} and axis(cells_of("paper-aggzo-opt"), "seed") == {0}
    for name, rule in (("paper-aggzo", (None, 100)), ("paper-aggzo-opt", ("best_dev", 250))):
        assert settings(cells_of(name), "iterate", "evaluate_every", method="dp_aggzo_64") == {rule}
    for method in ("mezo", "mezo_lora", "mezo_prefix"):
        ((*how,),) = settings(
            cells_of("paper-mezo-roberta"), "iterate", "steps", "evaluate_every", method=method
        )
        assert how == ["best_dev_accuracy", 100_000, 10_000]
    for name, steps in (("paper-roberta", 10_000), ("paper-mezo-roberta", 100_000)):
        assert settings(cells_of(name), "steps", method="mezo") == {(steps,)}
    zoso = cells_of("paper-zoso")
    for task in axis(zoso, "task"):
        (rows,) = {n.train_rows for n in published.read() if n.cell.startswith(f"{task}/") and n.shots == 512}
        ((delta, smoothing),) = settings(zoso, "delta", "smoothing", task=task, method="dp_zoso")
        assert delta * rows == pytest.approx(1) and smoothing == 1e-6


def test_zero_shot_has_a_run_for_each_seed_where_seeds_draw_the_scored_rows():
    starts = {
        name: [cell["seed"] for cell in cells_of(name).values() if cell["method"] == "zero_shot"]
        for name in ("paper-opt", "paper-roberta")
    }
    assert starts == {"paper-opt": [0, 29, 83] * 12, "paper-roberta": [0] * 6}


def test_an_unknown_rule_is_refused(write):
    with pytest.raises(UsageError, match="sweep one: unknown rule of choice 'dve': did you mean 'dev'"):
        write("one", "extends: smoke\ntuning: dve\n")


@pytest.mark.parametrize("epsilon, multiplier", [("2", 4.570), ("6", 1.848)])
def test_trec_as_published_has_the_noise_of_the_published_runs(epsilon, multiplier):
    """Their accountant is told 3072 examples; one class has 86 of the 512, so that there are 2646."""
    from dpzero.plan.registry import card
    from dpzero.privacy import RunKey
    from dpzero.run.setup import Setup

    (cell,) = sweep.load(
        "paper-roberta", tasks="trec", methods="dpzero_as_published", epsilons=epsilon, seeds=42
    ).values()
    run = Setup.__new__(Setup)  # without its rows and weights
    run.cell, run.settings, run.card = cell, cell["settings"], card(cell["use"])
    run.task, run.examples, run.users = tasks.load("trec"), {"train": range(2646)}, None
    run.key = RunKey.for_run("published", 42)
    budget = run.budget(None)
    assert budget.setting.dataset_size == 2646
    assert budget.run.noise_scale == pytest.approx(2 * multiplier, abs=1e-3)


# --- a dry run, and one cell for real


def snakemake(*config: str, folder: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        ROOT / "Snakefile",
        "--cores",
        "2",
        "--dry-run",
    ]
    here = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "DPZERO_DATA_DIR": "", "DPZERO_MODEL_DIR": ""}
    return subprocess.run(
        [*command, "--quiet", "all", "--config", *config],
        cwd=folder,
        env={**os.environ, **here},
        capture_output=True,
        text=True,
    )


def test_a_dry_run_of_one_task_needs_no_hub_and_says_what_it_costs(tmp_path):
    done = snakemake("sweep=paper-roberta", "tasks=[sst2]", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("paper-roberta: "))
    assert line.startswith(
        "paper-roberta: 34 runs, 0 exist, 34 to be run, about 17 hours on an RTX 3090 (published;"
    )
    assert "(34 estimated)" in line


def test_rows_that_are_not_there_are_told_in_one_sentence(tmp_path):
    done = snakemake("sweep=paper-roberta", "tasks=[sst2]", f"data_dir={tmp_path}", folder=tmp_path)
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("dpzero: "))
    assert str(tmp_path / "sst2") in line and "correct data_dir" in line


@pytest.fixture
def stand_in(tmp_path) -> Path:
    """A folder with a tiny RoBERTa in the place of roberta-large, as save_pretrained writes it."""
    from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedTokenizerFast

    from tests.language.byte_level import byte_level_bpe

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model("roberta", **sizes, vocab_size=600, max_position_embeddings=514)
    )
    special = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>", "pad_token": "<pad>"}
    words = byte_level_bpe(["terrible", "great", "It", "was"])
    for part in (model, PreTrainedTokenizerFast(tokenizer_object=words, **special)):
        part.save_pretrained(tmp_path / "models" / "roberta-large")
    return tmp_path / "models"


@pytest.mark.slow
@pytest.mark.skipif(not (ROWS / "sst2" / "validation.jsonl").is_file(), reason=f"no task rows in {ROWS}")
def test_one_cell_runs_on_real_rows_with_a_stand_in_for_the_model_and_says_so(
    stand_in, cache, tmp_path, monkeypatch
):
    """All as published but for the number of steps: 512 rows of each class, batches of 64, at epsilon 2."""
    from dpzero.report.writing import write_tables
    from dpzero.run.run import run_cell

    monkeypatch.setenv("DPZERO_DATA_DIR", str(ROWS))
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(stand_in))
    (cell,) = sweep.load("paper-roberta", tasks="sst2", methods="dpzero", epsilons=2, seeds=42).values()
    cell["settings"] |= {"steps": 3, "evaluate_every": 0}
    out = tmp_path / "record.json"
    record = run_cell(cell, out, lambda line: None, "cpu")
    assert record["status"] == "ok" and json.loads(out.read_text())["run"] == record["run"]
    assert (record["privacy"]["dataset_size"], record["privacy"]["batch_size"]) == (1024, 64)
    assert record["metrics"]["examples"] == 872 and record["metrics"]["selection"] == "last iterate"
    tuning = sweep.TUNING[sweep.read("paper-roberta")["tuning"]]
    write_tables("language", [out], tmp_path / "tables", "paper-roberta", [record["run"]], tuning)
    text = (tmp_path / "tables" / "published.md").read_text()
    assert "91.8 ± 0.1 (standard error, 3 seeds)" in text
    differences = "steps 3, theirs 10000; rows: whole sentences, theirs GLUE's phrases; a stand-in of 0.0"
    assert f"not compared: {differences}" in text


# --- a cell of each sweep with the published demonstrations, loss and dropout, on stand-ins for rows and models

OPT_ROWS: dict[str, Callable[[int], dict]] = {
    "rte": lambda i: {"sentence1": f"film {i}.", "sentence2": "It was great.", "label": i % 2},
    "copa": lambda i: {"premise": f"It {i}.", "choice1": "We.", "choice2": f"It was great {i}.", "question": "effect", "label": i % 2},
    "squad": lambda i: {"title": "film", "context": f"It was {i}", "question": "What", "answers": {"text": ["great " * (1 + i % 5)]}},
    "drop": lambda i: {"passage": f"It was {i}", "question": "What", "answers_spans": {"spans": ["great " * (1 + i % 5)]}},
    "record": lambda i: {"passage": f"It {i}", "query": "It was @placeholder", "entities": ["great", "terrible film"],
                         "answers": [["great", "terrible film"][i % 2]]},
}  # fmt: skip


def write_rows(folder: Path, task: str, row: Callable[[int], dict], train: int) -> None:
    """Of the task's local files, as many training rows and 12 of the others."""
    for split, file in tasks.stanza(task)["files"].items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        count = train if split == "train" else 12
        path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(count)))


def write_opt(folder: Path, name: str) -> None:
    """A tiny OPT under the name of a large one, with OPT's rate of dropout."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from tests.language.byte_level import byte_level_bpe

    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "vocab_size": 600, "max_position_embeddings": 2048}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("opt", **sizes, dropout=0.1))
    words = byte_level_bpe(["terrible", "great", "It", "was", "film", "Yes", "No"])
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    for part in (model, PreTrainedTokenizerFast(tokenizer_object=words, **special)):
        part.save_pretrained(folder / name)


def rehearse(cell: dict, tmp_path: Path, **short: object) -> None:
    """The cell runs as planned, but for these settings; none of the published code differs from the published run's."""
    from dpzero.report import records
    from dpzero.run.run import run_cell

    cell["settings"] |= {"evaluate_every": 1, "curve_examples": 6, "test_examples": 8, **short}
    record = run_cell(cell, tmp_path / "record.json", lambda line: None, "cpu")
    assert record["status"] == "ok"
    (row,) = records.to_frame([record]).to_dict("records")
    for theirs in published.for_run(record["run"]):
        words = " ".join(published.differences(row, theirs))
        assert "a stand-in of" in words
        assert not any(key in words for key in ("batch loss", "dropout", "demonstrations", "leading blanks"))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name, task, method",
    [
        ("paper-mezo-large", "squad", "in_context"),
        pytest.param("paper-mezo", "rte", "in_context", marks=SLOW),
        pytest.param("paper-mezo", "squad", "adamw", marks=SLOW),
        pytest.param("paper-mezo", "copa", "mezo", marks=SLOW),
        pytest.param("paper-mezo", "drop", "mezo_prefix", marks=SLOW),
        pytest.param("paper-mezo", "record", "mezo_lora", marks=SLOW),
        pytest.param("paper-mezo", "drop", "linear_probing", marks=SLOW),
        pytest.param("paper-opt", "squad", "mezo", marks=SLOW),
        pytest.param("paper-opt", "squad", "dpzero", marks=SLOW),
        pytest.param("paper-opt-grid", "drop", "mezo_learning_rate1e-6", marks=SLOW),
        pytest.param("paper-aggzo-opt", "squad", "adamw", marks=SLOW),
    ],
)
def test_a_cell_on_opt_runs_on_stand_ins_as_published(name, task, method, cache, tmp_path, monkeypatch):
    model = sweep.read(name)["models"][0]
    write_opt(tmp_path / "models", model)
    write_rows(tmp_path / "rows", task, OPT_ROWS[task], 512)
    monkeypatch.setenv("DPZERO_DATA_DIR", str(tmp_path / "rows"))
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(tmp_path / "models"))
    (cell, *_) = sweep.load(name, tasks=task, models=model, methods=method).values()
    rehearse(cell, tmp_path, **({} if method == "in_context" else {"steps": 2}))


@pytest.mark.parametrize(
    "name, method",
    [
        pytest.param("paper-roberta", "dp_adamw", marks=SLOW),
        pytest.param("paper-roberta", "adamw", marks=SLOW),
        pytest.param("paper-roberta", "dp_lora", marks=SLOW),
        pytest.param("paper-roberta-grid", "lora_learning_rate1e-3", marks=SLOW),
        pytest.param("paper-mezo-roberta", "prefix", marks=SLOW),
        pytest.param("paper-mezo-roberta-16", "lora", marks=SLOW),
        pytest.param("paper-aggzo", "dp_adamw", marks=SLOW),
    ],
)
def test_a_cell_on_roberta_runs_on_stand_ins_as_published(
    name, method, stand_in, cache, tmp_path, monkeypatch
):
    write_rows(tmp_path / "rows", "sst2", lambda i: {"sentence": f"film {i}", "label": i % 2}, 1030)
    monkeypatch.setenv("DPZERO_DATA_DIR", str(tmp_path / "rows"))
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(stand_in))
    (cell, *_) = sweep.load(name, tasks="sst2", methods=method).values()
    rehearse(cell, tmp_path, steps=2, batch_size=8)


@pytest.mark.slow
@pytest.mark.skipif(not (ROWS / "sst2" / "validation.jsonl").is_file(), reason=f"no task rows in {ROWS}")
@pytest.mark.parametrize(
    "name, method, paper",
    [
        ("paper-roberta", "dpzero_as_published", "DPZero"),
        ("paper-aggzo", "dpzero", "DP-AggZO"),
        ("paper-zoso", "dp_zoso", "DP-ZOPO"),
        ("paper-mezo-roberta", "mezo", "MeZO"),
        ("paper-mezo-roberta-16", "mezo_lora", "MeZO"),
    ],
)
def test_a_cell_of_each_sweep_on_roberta_trains_the_output_layer_apart_and_replays(
    stand_in, cache, tmp_path, monkeypatch, name, method, paper
):
    """Of what is published, neither what is trained nor which checkpoint is reported differs: only the steps and the stand-ins."""
    from transformers import AutoModelForMaskedLM

    from dpzero.report.records import load
    from dpzero.run.replay import replay_record
    from dpzero.run.run import run_cell

    monkeypatch.setenv("DPZERO_DATA_DIR", str(ROWS))
    monkeypatch.setenv("DPZERO_MODEL_DIR", str(stand_in))
    (cell, *_) = sweep.load(name, tasks="sst2", methods=method, seeds=42).values()
    cell["settings"] |= {"steps": 4, "evaluate_every": 2} | (
        {"first_stage": 0} if method == "dp_zoso" else {}
    )
    record = run_cell(cell, out := tmp_path / "record.json", lambda line: None, "cpu")
    answer = replay_record(out, device="cpu")
    assert record["status"] == "ok" and answer["match"] and answer["steps"] == 4
    tied = AutoModelForMaskedLM.from_pretrained(stand_in / "roberta-large")
    table, all_tensors = tied.get_input_embeddings().weight.nbytes, sum(p.nbytes for p in tied.parameters())
    assert record["memory"]["weights_bytes"] > all_tensors + 0.9 * table
    (row,) = load([out]).to_dict("records")
    numbers = [
        n
        for n in published.for_run(record["run"])
        if n.paper == paper and n.shots == cell["settings"]["shots"]
    ]
    assert numbers
    for number in numbers:
        words = "; ".join(published.differences(row, number))
        assert "a stand-in of" in words
        assert not any(part in words for part in ("tie embeddings", "lora head", "checkpoint", "iterate"))
