"""Every setting, seed and epsilon: the range of the table is what a cell takes, and nothing else is more than one line."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.plan import registry, sweep
from dpzero.plan import settings as schema
from dpzero.plan.settings import ANY, Entry, Range

CELL = {"task": "toy", "model": "tiny-encoder", "epsilon": "2", "seed": 0}
CARDS = registry.cards()
PAIRS = [(method, name) for method, card in CARDS.items() for name in schema.cell_settings(card)]
JUNK = [None, [], {}, [1], "x", "", b"x", float("nan"), float("inf"), -float("inf"), 10**400, "1e400", "٣"]


def cell(method: str, **changes) -> dict:
    """The smallest cell of a method, changed."""
    given = dict.fromkeys(CARDS[method].required, 1) | {"steps": 5}
    return {**CELL, "method": method, "settings": given | changes}


def refused(spec: object) -> str:
    with pytest.raises(UsageError) as error:
        sweep.complete(spec)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000
    return str(error.value)


def wrong(entry: Entry) -> Iterator[object]:
    """Values of another type, and at each side of what is allowed."""
    if entry.type == "bool":
        yield from [1, 0, "true", *JUNK]
    elif entry.type == "str":
        yield from [1, True, 1.5, None, [], {}] + (["none of these"] if entry.allowed else [])
    else:
        yield from [True, False, *JUNK]
        least, most = entry.allowed.least, entry.allowed.most
        if math.isfinite(least):
            yield from [least - 1, -1e300] + ([least] if entry.allowed.above else [])
        if math.isfinite(most):
            yield from [most * 2, 1e300] + ([most] if entry.allowed.below else [])
        if entry.type == "int":
            yield from [1.5, "2.0", "1e3"]


@pytest.mark.parametrize("method, name", PAIRS, ids=map("-".join, PAIRS))
def test_a_value_that_is_not_allowed_is_named(method, name):
    for value in wrong(schema.cell_settings(CARDS[method])[name]):
        assert name in refused(cell(method, **{name: value})), value


@pytest.mark.parametrize("method, name", PAIRS, ids=map("-".join, PAIRS))
def test_what_the_table_allows_is_taken_or_another_rule_refuses_it(method, name):
    entry = schema.cell_settings(CARDS[method])[name]
    if isinstance(entry.allowed, tuple):
        values = entry.allowed
    elif isinstance(entry.allowed, Range) and entry.allowed != ANY:
        values = [v for v in (entry.allowed.least, entry.allowed.most) if v in entry.allowed]
    else:
        values = [entry.default] if entry.default is not None else []
    for value in values:
        try:
            sweep.complete(cell(method, **{name: value}))
        except UsageError as error:
            assert f"setting {name} is" not in str(error) or name == "steps", value


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"max_length": 0}, "setting max_length is 0, but must be of type int, from 1"),
        ({"clip": 0}, "setting clip is 0, but must be of type float, from 1e-12"),
        ({"smoothing": 0}, "setting smoothing is 0,"),
        ({"learning_rate": 0}, "setting learning_rate is 0,"),
        ({"learning_rate": float("inf")}, "setting learning_rate is inf"),
        ({"learning_rate": "inf"}, "setting learning_rate is 'inf'"),
        ({"token_budget": 0}, "setting token_budget is 0"),
        ({"curve_examples": -1}, "setting curve_examples is -1"),
        ({"evaluate_every": -1}, "setting evaluate_every is -1"),
        ({"batch_size": 0}, "setting batch_size is 0, but must be of type int, from 1"),
        ({"steps": 0}, "setting steps is 0, but a method that trains takes at least 1"),
        ({"delta": 1}, "setting delta is 1, but must be of type float, at least 0 and below 1"),
    ],
)
def test_the_value_and_what_is_allowed_stand_in_the_line(changes, words):
    assert words in refused(cell("dpzero", **changes))


@pytest.mark.parametrize(
    "changes", [{"perturb": "both_signs"}, {"cuda_graphs": True}, {"regularization": 0.5}]
)
def test_a_setting_that_was_removed_is_said_to_be(changes):
    assert "was removed: leave it out" in refused(cell("dp_zoso", **changes))


def of_a_masked_model(method: str, **settings: object) -> dict:
    planned = sweep.complete(cell(method, **settings) | {"model": "tiny-masked"})["settings"]
    return {name: planned[name] for name in ("tie_embeddings", "lora_head") if name in planned}


def test_a_cell_names_what_of_the_head_is_trained_where_it_makes_a_difference():
    assert of_a_masked_model("mezo", tune="full") == {}
    assert of_a_masked_model("mezo", tune="full", tie_embeddings=False) == {"tie_embeddings": False}
    assert of_a_masked_model("mezo", tune="lora", lora_head="trained") == {"lora_head": "trained"}
    for tune in ("bias", "lora", "prefix", "head"):  # whose head is a copy in any case
        assert of_a_masked_model("mezo", tune=tune, tie_embeddings=False) == {}
    assert of_a_masked_model("zero_shot", tune="full", tie_embeddings=False) == {}


@pytest.mark.parametrize(
    "model, changes, words",
    [
        (
            "tiny-causal",
            {"tune": "full", "tie_embeddings": False},
            "is for masked models, and tiny-causal is none",
        ),
        ("tiny-encoder", {"tune": "lora", "lora_head": "trained"}, "is for tune lora of a masked model"),
        ("tiny-masked", {"tune": "full", "lora_head": "trained"}, "is for tune lora of a masked model"),
        (
            "tiny-encoder",
            {"tune": "bias", "lora_a": "frozen"},
            "lora_a is for tune lora: leave it out",
        ),
    ],
)
def test_a_part_that_cannot_be_trained_so_is_refused(model, changes, words):
    assert words in refused(cell("mezo", **changes) | {"model": model})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tune": "lora", "reduction": 4}, "reduction is for tune side or reversible: leave it out"),
        ({"tune": "reversible", "compression": "pool"}, "compression is for tune side: leave it out"),
        ({"tune": "side", "coupling": 0.1}, "coupling is for tune reversible: leave it out"),
        ({"tune": "side", "span": 3}, "span is for tune reversible: leave it out"),
    ],
)
def test_a_setting_of_another_network_is_refused(changes, words):
    assert words in refused(cell("dp_sgd", **changes))


USERS = {"unit": "user", "synthetic_users": 9}
GROUPS = USERS | {"user_level": "group_privacy", "examples_per_user": 3}


@pytest.mark.parametrize(
    "method, setting, unread, read",
    [
        ("dp_sgd", {"stability": 0.1}, {"clip_rule": "flat"}, {"clip_rule": "automatic"}),
        ("dp_sgd", {"clipping": "ghost"}, USERS, GROUPS),
        ("pazo", {"public_weight": 0.1}, {"variant": "select"}, {"variant": "mixed"}),
        ("pazo", {"candidates": 4}, {"variant": "mixed"}, {"variant": "subspace"}),
        ("pazo", {"basis": "orthonormal"}, {"variant": "select"}, {"variant": "subspace"}),
        ("pazo", {"exploration": 0.1}, {"variant": "subspace"}, {"variant": "select"}),
        ("pazo", {"directions": 4}, {"variant": "select"}, {"variant": "subspace"}),
        ("pazo", {"smoothing": 0.1}, {"variant": "select"}, {"variant": "mixed"}),
        ("dpzero", {"moment_floor": 0.1}, {}, {"second_moment": 0.9}),
        ("mezo", {"direction_rank": 2}, {"direction_law": "sphere"}, {"direction_law": "low_rank"}),
        ("dp_adafest", {"map_clip": 0.5}, {"tune": "head"}, {"tune": "embeddings"}),
        ("dp_adafest", {"threshold": 2.0}, {"tune": "bias"}, {"tune": "full"}),
    ],
)
def test_a_setting_differs_from_its_default_where_it_is_read_alone(method, setting, unread, read):
    [(name, value)] = setting.items()
    assert f"method {method}: {name} is for " in refused(cell(method, **setting, **unread))
    assert sweep.complete(cell(method, **setting, **read))["settings"][name] == value


def test_every_condition_names_values_that_its_setting_may_have():
    for method, card in CARDS.items():
        table = schema.cell_settings(card)
        for name, entry in table.items():
            gates = entry.read_if.keys() & table.keys()
            assert gates == schema._conditions(name, table).keys(), (method, name)


def test_a_method_of_ones_own_is_held_to_the_choices_that_it_shares(drop):
    drop("new", 'from typing import Literal\n\n\nclass New:\n    title = "New"\n    private = False\n'
         "    def __init__(self, model, loss, batch_size, *, directions: int = 1, stability: float = 0.01,\n"
         '        variant: Literal["a", "b"] = "a", clip_rule: Literal["flat", "automatic"] = "flat", seed: int = 0): ...\n')  # fmt: skip
    spec = {**CELL, "method": "new", "settings": {"steps": 1, "directions": 4}}
    assert sweep.complete(spec)["settings"]["directions"] == 4
    spec["settings"]["stability"] = 0.1
    assert "stability is for clip_rule automatic" in refused(spec)


@pytest.mark.parametrize(
    "method, changes, words",
    [
        ("dp_sgd", {"clipping": "ghost", "clip_rule": "per_layer"}, "set clipping to book_keeping or hooks"),
        ("dp_sgd", {"tune": "reversible", "dropout": True}, "leave dropout out"),
        ("fine_tuning", {"tune": "reversible", "dropout": True}, "leave dropout out"),
        ("dp_votezo", {"second_moment": 0.9}, "second_moment and shrinkage both scale"),
        ("dp_adafest", USERS, "dp_adafest clips examples, not users: take user_level group_privacy"),
        ("dp_aggzo", USERS, "dp_aggzo clips examples, not users: take user_level group_privacy"),
        ("jft", {"adjacency": "replace_one", "first_steps": 0}, "setting first_steps is 0, but must be"),
        ("dp_few_shot", {}, "written by a causal model, and tiny-encoder is none"),
    ],
)
def test_what_a_method_would_refuse_is_refused_before_a_model_is_loaded(method, changes, words):
    assert words in refused(cell(method, **changes))


def test_a_cell_names_what_its_network_has_beside_the_defaults():
    settings = {"tune": "reversible", "coupling": 0.25, "reduction": 8}
    planned = sweep.complete(cell("dp_sgd", **settings))["settings"]
    assert planned["coupling"] == 0.25 and not {"reduction", "span", "compression"} & set(planned)


@pytest.mark.parametrize("seed", [2**32, 2**64, -1, 0.5, True, None, [], "x", "1e3"])
def test_a_seed_is_one_that_every_generator_takes(seed):
    assert "is not a whole number from 0 to 4294967295" in refused(cell("dpzero") | {"seed": seed})


def test_the_largest_seed_is_taken():
    assert sweep.complete(cell("dpzero") | {"seed": 2**32 - 1})["seed"] == 2**32 - 1


@pytest.mark.parametrize("epsilon", ["1e-400", "1e400", 1e-300, 1e300, "2,8"])
def test_an_epsilon_is_in_range(epsilon):
    assert repr(epsilon) in refused(cell("dpzero") | {"epsilon": epsilon})


@pytest.mark.parametrize("key", ["task", "model", "method", "title", "use"])
@pytest.mark.parametrize("value", [None, [], {}, 3, ["toy"]])
def test_names_are_texts(key, value):
    assert key in refused(cell("dpzero") | {key: value})


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", ".hidden", "a\nb", "a b"])
def test_a_method_names_a_file(name):
    refused(cell("dpzero") | {"method": name, "use": "dpzero"})


def test_on_the_command_line_commas_make_a_list():
    """Snakemake hands epsilons=2,8 on as it is."""
    kept = {"methods": "dpzero,mezo", "epsilons": "2,8"}
    assert sweep.load("smoke", **kept) == sweep.load("smoke", methods=["dpzero", "mezo"], epsilons=[2, 8])


def test_a_setting_that_only_a_users_method_has_may_be_any_number(drop):
    drop("new", 'class New:\n    title = "New"\n    private = False\n'
         "    def __init__(self, model, loss, batch_size, *, decay: float = 0.5, seed: int = 0): ...\n")  # fmt: skip
    spec = {**CELL, "method": "new", "settings": {"steps": 1, "decay": -3}}
    assert sweep.complete(spec)["settings"]["decay"] == -3
    spec["settings"]["decay"] = float("nan")
    assert "setting decay is nan, but must be of type float" in refused(spec)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from([*CELL, "method", "settings", "experiment", *schema.RUN_SETTINGS, "clip", "x"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=3), st.dictionaries(KEYS, VALUES, max_size=3))
def test_any_cell_is_completed_or_refused_in_one_line(outside, inside):
    spec = cell("dpzero") | outside
    if isinstance(spec["settings"], dict):
        spec["settings"] = spec["settings"] | inside
    try:
        completed = sweep.complete(spec)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(completed, allow_nan=False)


KINDS = {
    name: yaml.safe_load((sweep.FOLDER / f"{name}.yaml").read_text("utf-8"))
    for name in ("smoke", "quadratic", "guarantees", "memory")
}
OTHERS = ["extends", "overrides", "gpu_share", "tokens", "core_seconds", "experiment", "methods", 3]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_sweep_file_is_read_or_refused_in_one_line(kind, data, tmp_path_factory):
    """One value of the file, at any depth, is another."""
    changed = copy.deepcopy(KINDS[kind])
    holder, key = changed, data.draw(st.sampled_from([*changed, *OTHERS]))
    while (
        isinstance(holder, dict)
        and isinstance(inner := holder.get(key), (dict, list))
        and inner
        and data.draw(st.booleans())
    ):
        holder = inner
        key = data.draw(st.sampled_from([*inner] if isinstance(inner, dict) else range(len(inner))))
    holder[key] = data.draw(VALUES)
    folder = tmp_path_factory.getbasetemp()
    for name in ("one", "smoke"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(changed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "FOLDER", folder)
        try:
            json.dumps(sweep.load("one"), allow_nan=False)
        except UsageError as error:
            assert "\n" not in str(error)


def test_old_names_of_keys_and_rules_are_read_and_said(write, capsys):
    assert write("one", "extends: smoke\nchosen: elsewhere\n") == sweep.load("smoke")
    assert sweep.read("one")["tuning"] == "transferred"
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "dpzero: sweep one: chosen is called tuning now",
        "dpzero: sweep one: elsewhere is called transferred now",
    ]


def test_a_sweep_that_extends_itself_is_refused(write):
    with pytest.raises(UsageError, match="sweep one extends itself"):
        write("one", "extends: one\n")


# Training rows of the tasks whose rows come from files or the hub: those of the published data sets
ROWS = {
    "sst2": 6920,
    "sst5": 8544,
    "trec": 5452,
    "rte": 2490,
    "snli": 549_367,
    "mnli": 392_702,
    "boolq": 9427,
    "cb": 250,
}
ROWS |= {
    "wsc": 554,
    "wic": 5428,
    "multirc": 27_243,
    "copa": 400,
    "record": 100_730,
    "squad": 87_599,
    "drop": 77_400,
}


@pytest.mark.parametrize(
    "name", [name for name in sweep.names() if sweep.read(name)["experiment"] == "language"]
)
def test_no_batch_of_a_shipped_sweep_has_more_examples_than_rows(name):
    for run, planned in sweep.load(name).items():
        settings, stanza = planned["settings"], tasks.stanza(planned["task"])
        # those of packages are thousands; a tenth may be dev
        rows = ROWS.get(planned["task"], 1000) * 9 // 10
        if "shots" in settings:
            rows = settings["shots"] * len(stanza["words"])
        rows = min(rows, settings.get("train_examples", rows))
        assert 1 <= settings["batch_size"] <= rows, run


def test_a_batch_is_of_all_rows_where_a_draw_has_fewer():
    cells = sweep.load("paper-mezo-roberta-16").values()
    sizes = {
        (c["task"], c["settings"]["shots"], c["settings"]["batch_size"])
        for c in cells
        if c["method"] == "mezo"
    }
    assert ("sst2", 16, 32) in sizes and ("snli", 16, 48) in sizes and ("trec", 16, 64) in sizes


def test_users_are_no_unit_of_methods_that_draw_examples_of_their_own():
    stanza = {"clip": 1.0, "learning_rate": 0.1, "steps": 2, "unit": "user", "synthetic_users": 10}
    cell = {"task": "r8", "model": "minilm", "method": "pazo", "use": "pazo", "epsilon": "2", "seed": 0}
    with pytest.raises(UsageError, match="method pazo draws examples, not users: leave unit out"):
        sweep.complete({**cell, "title": "PAZO", "settings": {"tune": "head", **stanza}})
