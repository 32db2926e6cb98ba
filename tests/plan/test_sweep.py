"""Sweeps: what they expand to, how they are narrowed, and what they say of a name that nobody knows."""

from __future__ import annotations

import inspect
import json
import math
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzero.errors import UsageError
from dpzero.files import run_id
from dpzero.language.data.datasets import ALL, Draw
from dpzero.plan import registry, sweep
from dpzero.plan.settings import canonical_epsilon, check_files, draw_of

SMOKE = sweep.load("smoke")
POSITIVE = st.decimals(min_value="0.0001", max_value="10000", places=4)

ONE = """
tuning: fixed
tasks: [toy]
models: [tiny-encoder]
epsilons: ["2"]
seeds: [0]
settings: {steps: 5}
methods:
  dpzero: {learning_rate: 1.0e-3, clip: 5}
"""


def only(cells: dict[str, dict]) -> dict:
    (cell,) = cells.values()
    return cell["settings"]


# --- epsilon


@pytest.mark.parametrize(
    "spelling, text",
    [
        (2, "2"),
        (2.0, "2"),
        ("2", "2"),
        ("2.00", "2"),
        (" 2 ", "2"),
        (0.5, "0.5"),
        (".5", "0.5"),
        ("5e-1", "0.5"),
        (100, "100"),
        ("1e2", "100"),
    ],
)
def test_epsilon_has_one_spelling(spelling, text):
    assert canonical_epsilon(spelling) == text


@pytest.mark.parametrize(
    "value", ["inf", float("inf"), ".inf", "nan", float("nan"), 0, "0.0", -1, "two", "", None, True]
)
def test_an_epsilon_that_is_no_positive_number_is_refused_in_one_line(value):
    with pytest.raises(UsageError, match="is not a positive number") as error:
        sweep.load("smoke", epsilons=[value])
    assert "\n" not in str(error.value)


@given(POSITIVE)
def test_every_spelling_of_a_number_is_the_same_epsilon(number):
    text = canonical_epsilon(number)
    assert Decimal(text) == number
    spellings = (str(number), float(number), f"{number:e}", f"{number}0", f" {number}", text)
    assert {canonical_epsilon(spelling) for spelling in spellings} == {text}
    assert set(text) <= set("0123456789.") and text[-1] != "."  # fit for a path


# --- cells


@pytest.mark.parametrize("name", sweep.names())
def test_every_sweep_of_the_house_loads(name):
    cells = sweep.load(name)
    assert cells and all(run == run_id(cell) for run, cell in cells.items())
    assert json.loads(json.dumps(cells)) == cells


def test_a_run_id_is_task_model_method_epsilon_seed():
    assert "toy/tiny-encoder/dp_zo_laplace/eps-8/seed-0" in SMOKE


def test_methods_without_noise_run_once():
    cells = sweep.load("smoke", epsilons=[1, 2, 4], seeds=[0, 1])
    by_method = {
        method: [(c["epsilon"], c["seed"]) for c in cells.values() if c["method"] == method]
        for method in ("zero_shot", "mezo", "adamw", "dpzero")
    }
    assert by_method["zero_shot"] == [("0", 0)]
    assert by_method["mezo"] == by_method["adamw"] == [("inf", 0), ("inf", 1)]
    assert by_method["dpzero"] == [(e, s) for e in ("1", "2", "4") for s in (0, 1)]


def test_zero_shot_takes_no_step_whatever_the_sweep_says(write):
    cells = write("one", ONE + "  zero_shot: {steps: 7}\n")
    assert cells["toy/tiny-encoder/zero_shot/eps-0/seed-0"]["settings"]["steps"] == 0


def test_a_method_without_noise_has_no_settings_of_noise():
    (cell,) = (c for c in SMOKE.values() if c["method"] == "mezo")
    assert not {"delta", "mechanism", "adjacency", "noise_key"} & set(cell["settings"])


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from([2, 2.0, "2", "2.0", 8, "8.00", 0.5, ".5"]), min_size=1),
    st.lists(st.sampled_from([0, 1, "1", 2]), min_size=1),
)
def test_no_cell_is_there_twice(epsilons, seeds):
    cells = sweep.load("smoke", methods=["zero_shot", "mezo", "dpzero"], epsilons=epsilons, seeds=seeds)
    different_seeds, different_epsilons = len({int(s) for s in seeds}), len({float(e) for e in epsilons})
    assert len(cells) == 1 + different_seeds + different_seeds * different_epsilons


# --- narrowing


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(["zero_shot", "sgd", "mezo", "dpzero", "dp_adam"]), min_size=1, unique=True),
    st.lists(st.sampled_from(["2", "8"]), min_size=1, unique=True),
)
def test_narrowing_leaves_the_cells_that_remain_as_they_are(chosen, epsilons):
    narrowed = sweep.load("smoke", methods=chosen, epsilons=epsilons)
    kept = {
        run: cell
        for run, cell in SMOKE.items()
        if cell["method"] in chosen and cell["epsilon"] in ("0", "inf", *epsilons)
    }
    assert narrowed == kept


@pytest.mark.parametrize(
    "axis, value, key",
    [
        ("tasks", "toy", "task"),
        ("models", "tiny-causal", "model"),
        ("methods", "dpzero", "method"),
        ("epsilons", "3", "epsilon"),
        ("seeds", 5, "seed"),
    ],
)
def test_every_axis_takes_one_value_or_a_list(axis, value, key):
    chosen = {"methods": ["dpzero"], axis: [value]}
    cells = sweep.load("smoke", **chosen)
    assert {cell[key] for cell in cells.values()} == {value}
    assert sweep.load("smoke", **(chosen | {axis: value})) == cells


def test_an_axis_of_a_file_may_be_one_value(write):
    text = ONE.replace('["2"]', "2").replace("[toy]", "toy").replace("[0]", "0")
    assert list(write("one", text)) == ["toy/tiny-encoder/dpzero/eps-2/seed-0"]


def test_another_seed_leaves_every_other_cell_byte_for_byte():
    more = sweep.load("smoke", seeds=[0, 1])
    assert {run: json.dumps(more[run]) for run in SMOKE} == {r: json.dumps(c) for r, c in SMOKE.items()}
    assert {cell["seed"] for run, cell in more.items() if run not in SMOKE} == {1}


# --- names that nobody knows


@pytest.mark.parametrize(
    "name, narrowed, words",
    [
        ("smok", {}, "unknown sweep 'smok': did you mean 'smoke'?"),
        ("smoke", {"method": ["dpzero"]}, "unknown axis or limit 'method': did you mean 'methods'?"),
        ("smoke", {"methods": ["dpzreo"]}, "unknown method 'dpzreo': did you mean 'dpzero'?"),
        ("smoke", {"tasks": ["toi"]}, "unknown task 'toi': did you mean 'toy'?"),
        ("smoke", {"models": "tiny-encodr"}, "unknown model 'tiny-encodr': did you mean 'tiny-encoder'?"),
        ("smoke", {"methods": ["???"]}, "unknown method '???': known are zero_shot, adamw"),
        ("smoke", {"methods": []}, "the axis methods is empty"),
        ("smoke", {"seeds": None}, "the axis seeds is empty"),
        ("smoke", {"seeds": [-1]}, "seed -1 is not a whole number"),
        ("smoke", {"seeds": [0.5]}, "seed 0.5 is not a whole number"),
        ("smoke", {"seeds": [True]}, "seed True is not a whole number"),
        ("../sweeps/smoke", {}, "unknown sweep '../sweeps/smoke'"),
    ],
)
def test_a_misspelt_name_is_named_with_the_nearest(name, narrowed, words):
    with pytest.raises(UsageError) as error:
        sweep.load(name, **narrowed)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("settings:", "setings:", "sweep one: unknown key 'setings': did you mean 'settings'?"),
        ("steps: 5", "stps: 5", "unknown setting 'stps': did you mean 'steps'?"),
        ("clip: 5", "clipp: 5", "method dpzero: unknown setting 'clipp': did you mean 'clip'?"),
        ("clip: 5", "clip: 5, tune: bais", "unknown value of tune 'bais': did you mean 'bias'?"),
        ("clip: 5", "clip: 5, split: tset", "unknown value of split 'tset': did you mean 'test'?"),
        ("clip: 5", "clip: 5, mechanism: gausian", "did you mean 'gaussian'?"),
        ("clip: 5", "clip: 5, use: dpzo", "unknown method file 'dpzo': did you mean 'dp_zo'?"),
        ("dpzero:", "dp_zr:", "unknown method file 'dp_zr'"),
        (", clip: 5", "", "method dpzero needs the setting 'clip'"),
        ("steps: 5", "tune: bias", "method dpzero needs the setting 'steps'"),
        ("methods:", "extends: smok\nmethods:", "unknown sweep 'smok': did you mean 'smoke'?"),
        ("[toy]", "[toy", "sweep one: not valid YAML"),
        ("[toy]", "[]", "the axis tasks is empty"),
        ("tasks: [toy]\n", "", "the axis tasks is empty"),
        ("methods:\n  dpzero: {learning_rate: 1.0e-3, clip: 5}", "", "the axis methods is empty"),
    ],
)
def test_a_fault_of_a_file_is_named(write, old, new, words):
    assert old in ONE
    with pytest.raises(UsageError) as error:
        write("one", ONE.replace(old, new))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("toy/tiny-encoder/dpzreo", "unknown method 'dpzreo': did you mean 'dpzero'?"),
        ("toi/*/dpzero", "unknown task 'toi': did you mean 'toy'?"),
        ("*/tiny/dpzero", "unknown model 'tiny'"),
        ("dpzero", "write it as TASK/MODEL/METHOD"),
    ],
)
def test_an_override_that_could_never_match_is_refused(write, pattern, words):
    with pytest.raises(UsageError) as error:
        write("one", ONE + f'overrides: {{"{pattern}": {{clip: 1}}}}\n')
    assert pattern in str(error.value) and words in str(error.value)


# --- settings


def test_the_most_specific_override_wins(write):
    text = ONE + (
        "overrides:\n"
        '  "toy/tiny-encoder/dpzero": {clip: 4}\n'
        '  "toy/*/dpzero": {clip: 3, learning_rate: 3}\n'
        '  "*/*/dpzero": {clip: 2, learning_rate: 2, smoothing: 2}\n'
        '  "*/*/*": {clip: 1, learning_rate: 1, smoothing: 1, batch_size: 1}\n'
    )
    settings = only(write("one", text))
    names = ("clip", "learning_rate", "smoothing", "batch_size")
    assert [settings[name] for name in names] == [4, 3, 2, 1]


def test_an_override_reaches_its_own_cells_only(write):
    text = ONE.replace("[tiny-encoder]", "[tiny-encoder, tiny-causal]")
    cells = write("one", text + 'overrides: {"toy/tiny-causal/*": {clip: 1}}\n')
    clips = {cell["model"]: cell["settings"]["clip"] for cell in cells.values()}
    assert clips == {"tiny-encoder": 5, "tiny-causal": 1}


def test_a_stanza_goes_before_the_settings_of_all(write):
    assert only(write("one", ONE.replace("clip: 5", "clip: 5, steps: 9")))["steps"] == 9


def test_a_setting_for_all_is_passed_over_where_a_method_has_none(write):
    cells = write("one", ONE.replace("steps: 5", "steps: 5, clip: 3") + "  mezo: {learning_rate: 1}\n")
    assert {c["method"]: c["settings"].get("clip") for c in cells.values()} == {"dpzero": 5, "mezo": None}


def test_extending_takes_over_and_changes(write):
    cells = write("two", "extends: smoke\nseeds: [7]\nsettings: {steps: 3}\n")
    assert {run.replace("seed-7", "seed-0") for run in cells} == set(SMOKE)
    assert {c["settings"]["steps"] for c in cells.values() if c["method"] != "zero_shot"} == {3}
    assert {cell["settings"]["batch_size"] for cell in cells.values()} == {8}


def test_extending_with_other_methods_forgets_the_overrides_of_those_left_out(write):
    write("one", ONE + 'overrides: {"*/*/dpzero": {clip: 1}}\n')
    assert write("two", "extends: one\nmethods: {mezo: {learning_rate: 1}}\n")


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", '"1e-5"', "0.00001"])
def test_a_number_that_yaml_reads_as_text_is_a_number(write, text):
    rate = only(write("one", ONE.replace("learning_rate: 1.0e-3", f"learning_rate: {text}")))["learning_rate"]
    assert rate == 1e-5 and isinstance(rate, float)


def test_settings_have_the_declared_types(write):
    settings = only(write("one", ONE.replace("clip: 5", 'clip: 5, batch_size: "8"')))
    assert (settings["clip"], type(settings["clip"])) == (5.0, float)
    assert (settings["batch_size"], type(settings["batch_size"])) == (8, int)


@pytest.mark.parametrize(
    "setting, kind",
    [
        ("batch_size: 8.5", "int"),
        ("batch_size: eight", "int"),
        ("batch_size: true", "int"),
        ("batch_size: null", "int"),
        ("learning_rate: fast", "float"),
        ("learning_rate: [1]", "float"),
        ("learning_rate: true", "float"),
        ("learning_rate: .inf", "float"),
        ("learning_rate: .nan", "float"),
        ("tune: 3", "str"),
        ("tune: null", "str"),
    ],
)
def test_a_value_of_another_type_is_refused(write, setting, kind):
    with pytest.raises(UsageError, match=rf"setting {setting.split(':')[0]} is .* of type {kind}"):
        write("one", ONE.replace("clip: 5", f"clip: 5, {setting}"))


def test_another_version_changes_the_cell_and_no_other(write):
    text = ONE + "  mezo: {learning_rate: 1}\n"
    before, after = write("one", text), write("one", text.replace("clip: 5", "clip: 5, version: 2"))
    assert [run for run in before if before[run] != after[run]] == ["toy/tiny-encoder/dpzero/eps-2/seed-0"]


def test_a_method_may_have_several_names(write):
    cells = write("one", ONE + '  again: {use: dpzero, title: "DPZero, again", learning_rate: 1, clip: 1}\n')
    first, second = cells.values()
    assert (first["use"], first["title"]) == ("dpzero", "DPZero")
    assert (second["method"], second["use"], second["title"]) == ("again", "dpzero", "DPZero, again")


# --- one cell, given by hand


@pytest.mark.parametrize("name", sweep.names())
def test_a_cell_of_a_sweep_is_complete(name):
    cells = dict(list(sweep.load(name).items())[::10])
    assert [json.dumps(sweep.complete(cell)) for cell in cells.values()] == [
        json.dumps(cell) for cell in cells.values()
    ]


def test_a_short_cell_is_filled_in():
    short = {"task": "toy", "model": "tiny-encoder", "method": "mezo", "epsilon": 3, "seed": "4"}
    cell = sweep.complete(short | {"settings": {"steps": 5, "learning_rate": "1e-3"}})
    assert run_id(cell) == "toy/tiny-encoder/mezo/eps-inf/seed-4"
    assert cell["title"] == "MeZO" and cell["settings"]["learning_rate"] == 1e-3
    assert cell["settings"]["tune"] == "bias"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"method": "mezzo"}, "unknown method file 'mezzo': did you mean 'mezo'?"),
        ({"task": "toi"}, "unknown task 'toi': did you mean 'toy'?"),
        ({"settings": {"steps": 5, "learning_rat": 1}}, "did you mean 'learning_rate'?"),
        ({"settings": [1]}, "`settings`"),
        ({"seed": 0.5}, "seed 0.5"),
    ],
)
def test_a_fault_of_a_cell_is_named(change, words):
    cell = {"task": "toy", "model": "tiny-encoder", "method": "mezo", "epsilon": "inf", "seed": 0}
    with pytest.raises(UsageError) as error:
        sweep.complete(cell | {"settings": {"steps": 5, "learning_rate": 1}} | change)
    assert words in str(error.value)


@pytest.mark.parametrize("cell", [[], 3, {}, {"settings": {}}, {"settings": {}, "task": "toy"}])
def test_half_a_cell_is_refused(cell):
    with pytest.raises(UsageError, match="task, model, method"):
        sweep.complete(cell)


# --- method files


def keywords(cls: type) -> dict[str, inspect.Parameter]:
    """Keyword-only arguments of `__init__`, and of those that its `**kwargs` are passed on to."""
    settings = {}
    for init in [vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base)]:
        parameters = inspect.signature(init).parameters
        settings = {key: p for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY} | settings
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return settings


@pytest.mark.parametrize("name", registry.cards())
def test_a_card_says_what_the_class_says(name):
    card = registry.card(name)
    cls = card.load()
    assert (card.title, card.private, card.order) == (cls.title, cls.private, cls.order)
    own = keywords(cls)
    apart = {"seed", *registry.NOT_IN_SWEEPS}
    assert {k: p.annotation for k, p in own.items() if k not in apart} == card.settings
    assert {k for k, p in own.items() if p.default is p.empty} == card.required


def test_every_method_file_has_a_card():
    files = {file.stem for file in (registry.ROOT / "baselines").glob("[!_]*.py")}
    assert set(registry.cards()) == {"dpzero", *files}


NEW = """
class New:
    title = "New"
    private = True

    def __init__(self, model, loss, budget, *, learning_rate: float, twice: bool = False, seed: int = 0): ...
"""


def test_a_new_file_is_found_with_no_other_edit(write, drop):
    drop("new_method", NEW)
    cells = write("one", ONE + "  new_method: {learning_rate: 1e-5, twice: true}\n", methods="new_method")
    ((run, cell),) = cells.items()
    assert run == "toy/tiny-encoder/new_method/eps-2/seed-0" and cell["title"] == "New"
    assert cell["settings"]["learning_rate"] == 1e-5 and cell["settings"]["twice"] is True


@pytest.mark.parametrize("value", ["1", '"true"', "maybe"])
def test_a_switch_is_true_or_false(write, drop, value):
    drop("new_method", NEW)
    with pytest.raises(UsageError, match=r"setting twice is .* of type bool"):
        write("one", ONE + f"  new_method: {{learning_rate: 1, twice: {value}}}\n")


def test_a_file_without_a_method_is_no_method(drop):
    drop("helper", "class Helper:\n    size = 3\n")
    assert "helper" not in registry.cards() and "mezo" in registry.cards()


def test_numbers_in_cells_are_finite():
    for cell in SMOKE.values():
        assert all(math.isfinite(v) for v in cell["settings"].values() if isinstance(v, float))


def test_a_setting_with_listed_values_takes_no_other(monkeypatch):
    """The values stand in the method's signature, as a Literal."""
    whole = sweep.read("smoke")
    whole["methods"] = {"sgd": whole["methods"]["sgd"] | {"optimizer": "sdg"}}
    with pytest.raises(UsageError, match="method sgd: unknown value of optimizer 'sdg': did you mean 'sgd'"):
        sweep._expand(whole, {}, "smoke", {})


VECTORS = ("pazo", "dp_sgd", "dp_adafest", "dp_aggzo", "geo_dpzo", "dp_votezo")


@pytest.mark.parametrize(
    "method, promise, words",
    [
        (
            "dpzero",
            {"sampling": "without_replacement"},
            "no proven accounting for gaussian with without_replacement",
        ),
        (
            "dp_zo",
            {"mechanism": "laplace", "adjacency": "replace_one"},
            "offered are gaussian or laplace with poisson",
        ),
        ("dpzero", {"delta": 0}, "delta 0"),
        (
            "dp_sgd",
            {"noise_arithmetic": "exact"},
            "exact noise is .* by forward passes alone, and dp_sgd does not",
        ),
        (
            "pazo",
            {"noise_arithmetic": "exact"},
            "exact noise is .* by forward passes alone, and pazo does not",
        ),
        *(
            (name, {"mechanism": "laplace"}, f"{name} releases a vector: use mechanism gaussian")
            for name in VECTORS
        ),
    ],
)
def test_a_promise_without_a_proof_is_refused_before_anything_runs(method, promise, words):
    spec = {"task": "toy", "model": "tiny-encoder", "method": method, "epsilon": 2, "seed": 0}
    with pytest.raises(UsageError, match=words):
        sweep.complete(spec | {"settings": {"steps": 5, "learning_rate": 0.1, "clip": 1, **promise}})


# --- local rows and draws


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """A folder with a small SST-2: (write(texts), the cell of a method, completed)."""
    monkeypatch.setenv("DPZERO_DATA_DIR", str(tmp_path))

    def write(texts: list[str]) -> None:
        lines = "".join(json.dumps({"sentence": t, "label": i % 2}) + "\n" for i, t in enumerate(texts))
        (tmp_path / "sst2").mkdir(exist_ok=True)
        for file in ("train_sentences.jsonl", "validation.jsonl"):
            (tmp_path / "sst2" / file).write_text(lines)

    return write


def sst2(**settings) -> dict:
    own = {"steps": 1, "learning_rate": 1e-3, "clip": 1.0, **settings}
    names = {"task": "sst2", "model": "tiny-encoder", "method": "dpzero", "epsilon": "2", "seed": 42}
    return sweep.complete({**names, "settings": own})


def test_a_cell_of_other_local_rows_is_another_cell(rows):
    rows(["good", "bad"])
    first = sst2()
    assert len(first["settings"]["data"]) == 64 and sweep.complete(first) == first
    rows(["good", "worse"])
    assert sst2()["settings"]["data"] != first["settings"]["data"]
    with pytest.raises(UsageError, match="give the data_dir that it was made with"):
        check_files(first)


def test_a_release_says_nothing_of_its_rows(rows):
    """Who knows all rows but one could try the last one until the digest fits."""
    rows(["good", "bad"])
    cell = sst2(noise_key="secret")
    assert "data" not in cell["settings"]
    check_files(cell)


def test_rows_that_are_not_local_have_no_digest_in_the_cell(monkeypatch):
    monkeypatch.delenv("DPZERO_DATA_DIR", raising=False)
    assert "data" not in sst2()["settings"]
    assert not {"data", "shots", "train_examples"} & set(only(sweep.load("smoke", methods=["zero_shot"])))


def test_a_draw_is_of_the_cells_seed(rows):
    rows(["good", "bad"])
    assert draw_of(sst2(shots=512)) == Draw(shots=512, seed=42)
    assert draw_of(sst2(train_examples=1000)) == Draw(train_examples=1000, seed=42)
    assert draw_of(sst2()) == ALL
    with pytest.raises(UsageError, match="shots and train_examples both say which rows to draw"):
        sst2(shots=1, train_examples=1)


def test_in_context_learning_reads_private_examples_and_depends_on_the_seed(write):
    cells = write(
        "one", ONE.replace("seeds: [0]", "seeds: [0, 1]") + "  icl: {use: zero_shot, demonstrations: 32}\n"
    )
    assert {run for run in cells if "/icl/" in run} == {
        f"toy/tiny-encoder/icl/eps-inf/seed-{s}" for s in (0, 1)
    }
    assert draw_of(cells["toy/tiny-encoder/icl/eps-inf/seed-1"]) == Draw(seed=1, demonstrations=32)


def test_how_demonstrations_are_shown_is_part_of_the_draw(write):
    shown = "{use: zero_shot, demonstrations: 32, demonstrations_for: each_row, leading_blanks: stripped}"
    (cell,) = (c for c in write("one", ONE + f"  icl: {shown}\n").values() if c["method"] == "icl")
    assert draw_of(cell) == Draw(0, 0, 0, 32, "each_row", "stripped")
    for setting in ("demonstrations_for: each_row", "leading_blanks: stripped"):
        with pytest.raises(UsageError, match=f"{setting.partition(':')[0]} is for demonstrations above 0"):
            write("one", ONE + f"  zero_shot: {{{setting}}}\n")


def test_the_mean_over_a_batchs_tokens_is_for_answers_of_methods_without_noise(write):
    free = ONE.replace("toy", "squad").replace("tiny-encoder", "tiny-causal")
    mezo, tokens = "  mezo: {learning_rate: 1.0e-3", ", batch_loss: mean_of_tokens}\n"

    def chosen(text: str) -> set[str | None]:
        return {c["settings"].get("batch_loss") for c in write("one", text).values() if c["method"] == "mezo"}

    assert chosen(free + mezo + tokens) == {"mean_of_tokens"}
    assert chosen(free + mezo + "}\n") == {None}
    assert chosen(ONE + mezo + tokens) == {None}  # a label's loss is one number
    private = "method dpzero: batch_loss mean_of_tokens lets one example's loss depend on its batch, which no private"
    with pytest.raises(UsageError, match=private):
        write("one", free.replace("clip: 5}", "clip: 5" + tokens))


def test_dropout_is_for_first_order_methods_under_a_published_key(write):
    first_order = "  adamw: {use: fine_tuning, learning_rate: 1.0e-3, dropout: %s}\n"
    private = "  dp_sgd: {learning_rate: 1.0e-3, clip: 1, dropout: true, noise_key: %s}\n"

    def chosen(text: str, method: str) -> object:
        (cell,) = (c for c in write("one", ONE + text).values() if c["method"] == method)
        return cell["settings"].get("dropout")

    assert chosen(first_order % "true", "adamw") is chosen(private % "published", "dp_sgd") is True
    assert chosen(first_order % "false", "adamw") is None  # as for the cells before there was dropout
    with pytest.raises(UsageError, match="method dp_sgd: dropout draws masks by a public seed"):
        write("one", ONE + private % "secret")
    for line in ("  mezo: {learning_rate: 1.0e-3, dropout: true}\n", "  zero_shot: {dropout: true}\n"):
        with pytest.raises(UsageError, match="the two passes of a zeroth-order step need the same function"):
            write("one", ONE + line)


def test_no_method_that_trains_has_private_examples_in_its_prompts(write):
    with pytest.raises(UsageError, match="demonstrations are private examples that stand in every prompt"):
        write("one", ONE + "  mezo: {learning_rate: 1.0e-3, demonstrations: 4}\n")
