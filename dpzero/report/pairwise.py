"""The order of methods: what papers claim of each pair is shown, refuted, or neither, by a paired interval.

Records that hold one bit for each test row tell three errors apart: over seeds, over test rows, and over both, which
decides (see `statistics.errors`). With older records the interval over seeds decides alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pandas

from dpzero.report import formatting
from dpzero.report.provenance import plural
from dpzero.report.records import correct_rows
from dpzero.report.statistics import Estimate, Summary, errors, holm, paired_difference
from dpzero.report.table import ABSENT, Row, Table, make_table, notes

PEAK = "memory.peak_allocated_bytes"
LEVEL = 0.05  # of a test
VOTES = ("dp_votezo", "votes")  # DP-VoteZO in `heads-tuned` and `ablation`
OTHER_VOTES = {  # its further rows there, and the row of DPZero that each is compared with
    **dict.fromkeys(("dp_votezo_untuned", "dp_votezo_quarter"), "dpzero"),
    "votes_full": "dpzero_full",
}
MARGIN = 0.01  # scores that differ by less are called equivalent
SCORED = ["metrics.split", "metrics.examples", "provenance.data.sha256"]  # equal: the same test rows


def _private_zeroth_order_but(*methods: str) -> Callable[[Any], bool]:
    return lambda run: run["private"] and run["order"] == 0 and run["method"] not in methods


ROLES: dict[str, Callable[[Any], bool]] = {
    "fine-tuning": lambda run: not run["private"] and run["order"] == 1,
    "MeZO": lambda run: not run["private"] and run["order"] == 0,
    "DPZero": lambda run: run["method"] == "dpzero",
    "zero-shot": lambda run: run["epsilon"] == "0",
    "DP-SGD": lambda run: run["private"] and run["order"] == 1 and not formatting.reads_public_rows(run),
    "methods that read public rows": lambda run: run["private"] and formatting.reads_public_rows(run),
    "zeroth-order rivals": _private_zeroth_order_but("dpzero", *VOTES, *OTHER_VOTES),
    "DP-VoteZO": lambda run: run["method"] in VOTES,
    "DPZero and its rivals": _private_zeroth_order_but(*VOTES, *OTHER_VOTES),
}
PAIRS = {  # two roles -> whether a paper says that the first does better
    ("fine-tuning", "MeZO"): True,
    ("MeZO", "DPZero"): True,
    ("DPZero", "zero-shot"): True,
    ("DPZero", "DP-SGD"): False,
    ("DPZero", "methods that read public rows"): False,
    ("DPZero", "zeroth-order rivals"): False,
    ("DP-VoteZO", "DPZero and its rivals"): False,
    ("DP-VoteZO", "DP-SGD"): False,
}


CHANGES = {  # a row of the sweeps `related` and `related-lm` -> the row from which it differs in what its system proposes
    **dict.fromkeys(("dp_lora_automatic", "dp_lora_per_layer", "dp_ffa_lora"), "dp_lora"),
    **dict.fromkeys(("dp_memarc_side", "dp_memarc_reversible"), "dp_lora"),
    **{"dp_sgd_automatic": "dp_sgd", "dp_adafest": "dp_sgd_embeddings", "dp_few_shot": "in_context"},
    **{"dpzero_users": "dpzero_group", "dp_sgd_users": "dp_sgd_group"},
    **dict.fromkeys(("pazo_mixed", "pazo_subspace", "pazo_select", "pazo_tweets"), "public_rows"),
}


def order(runs: pandas.DataFrame) -> Table:
    """One row for each pair of methods on each task and model, at each epsilon of the private ones."""
    lines = []
    for _, task_runs in runs.groupby(["task", "model"], sort=False):
        groups = [Group(rows) for _, rows in task_runs.groupby(["method", "epsilon"], sort=False)]
        for first, second, claim, claimed in _pairs(groups):
            epsilons = first.epsilons | second.epsilons
            if len(epsilons) < 2 and len(first.kinds | second.kinds) < 2:
                lines.append(_row(first, second, claim, claimed, "".join(epsilons)))
    told_apart = any(line["_by_rows"] for line in lines)
    _decide(lines, told_apart)
    values = {
        "seeds": plural(formatting.seeds(runs), "seed"),
        "margin": f"{100 * MARGIN:g}",
        "count": sum(line["difference_n"] > 1 for line in lines),
    }
    table = make_table("order_by_rows" if told_apart else "order", lines, **values)
    if few := sum(line.get("decided_by") == "seeds" and line["difference_n"] > 1 for line in lines):
        table.notes += notes("order_partly_by_seeds", count=few)
    if not lines:
        table.notes = ["No two methods here of which a paper claims an order."]
    return table


def _pairs(groups: list[Group]) -> Iterator[tuple[Group, Group, str, bool]]:
    """Two methods of one task and model, what is asked of them, and whether a paper claims it."""
    for roles, claimed in PAIRS.items():
        firsts, seconds = ([one for one in groups if ROLES[role](one.runs.iloc[0])] for role in roles)
        for first in firsts:
            for second in _of_equal_cost(first, seconds) if roles == ("DPZero", "DP-SGD") else seconds:
                yield first, second, f" {'over' if claimed else 'against'} ".join(roles), claimed
    for first, second in product(groups, groups):
        if CHANGES.get(first.method) == second.method:
            yield first, second, "variant against its base method", False
        if OTHER_VOTES.get(first.method) == second.method:
            yield first, second, "DP-VoteZO untuned or at other costs against DPZero", False


def _of_equal_cost(first: Group, seconds: list[Group]) -> list[Group]:
    """Those that train the head alone as the first does, or go through the body as it does; if there are none, all."""
    return [second for second in seconds if second.on_head == first.on_head] or seconds


class Group:
    """The runs of one method at one epsilon, with the bits of their test rows.

    Attributes:
        on_head: whether the head alone is trained.
        epsilons: the epsilon, if the method is private.
        kinds: what its epsilon covers, and how neighbouring data sets differ. Methods of other kinds are not compared.
        scored: what tells apart the test rows of runs; None if the seed draws them.
        bits: seed -> whether each test row was answered correctly.
        forwards: example forward passes of a run's training.
    """

    def __init__(self, runs: pandas.DataFrame) -> None:
        self.runs = runs
        first = runs.iloc[0]
        self.method = first["method"]
        self.on_head = formatting.trains_head_alone(first)
        adjacencies = runs["privacy.adjacency"].dropna() if "privacy.adjacency" in runs else ()
        self.kinds = {(first["promise"], adjacency) for adjacency in adjacencies if first["private"]}
        self.epsilons = {first["epsilon"]} if first["private"] else set()
        finished = runs[runs["status"] == "ok"]
        keys = finished[SCORED].drop_duplicates()
        drawn = formatting.draws_scored(finished)
        self.scored = None if drawn or len(keys) != 1 else tuple(map(str, keys.iloc[0]))
        bits = correct_rows(finished)
        self.bits = bits if len(bits) == len(finished) else {}
        self.forwards = runs["example_forwards"].max()
        self.seedless = len(finished) == 1 and formatting.without_seed(runs)

    def bits_for(self, other: Group) -> dict[int, Any]:
        """The bits by seed; those of a single run without seed count for every seed of the other."""
        if self.seedless and self.bits:
            return dict.fromkeys(other.bits, next(iter(self.bits.values())))
        return self.bits


def _row(first: Group, second: Group, claim: str, claimed: bool, epsilon: str) -> Row:
    scores = formatting.by_seed(first.runs, second.runs), formatting.by_seed(second.runs, first.runs)
    difference = paired_difference(*scores)
    by_rows = _errors_by_rows(first, second)
    one, other = first.runs.iloc[0], second.runs.iloc[0]
    return {
        "task": one["task"],
        "model": one["model"],
        "claim": claim,
        "first": one["method"],
        "second": other["method"],
        "epsilon": epsilon,
        **difference.columns("difference"),
        "memory_ratio": first.runs[PEAK].max() / second.runs[PEAK].max(),
        "forwards_ratio": first.forwards / second.forwards if second.forwards else math.nan,
        "_claimed": claimed,
        "_by_rows": by_rows,
        "_over_seeds": Estimate.over_seeds(difference),
        "_deciding": by_rows.get("both", Estimate.over_seeds(difference)),
        "_compared": f"{one['title']} − {other['title']}",
        "_difference": formatting.difference(difference),
        "_epsilon": epsilon or "∞",
    }


def _errors_by_rows(first: Group, second: Group) -> dict[str, Estimate]:
    """`statistics.errors` over the seeds that both have; empty if some run lacks the bits of the same rows."""
    if first.scored is None or first.scored != second.scored:
        return {}
    bits, theirs = first.bits_for(second), second.bits_for(first)
    seeds = sorted(bits.keys() & theirs.keys())
    return errors([bits[seed].astype(float) - theirs[seed] for seed in seeds]) if len(seeds) > 1 else {}


def _decide(lines: list[Row], told_apart: bool) -> None:
    """Give each row its verdict, and if rows are told apart what it rests on, and the verdict of the seeds alone."""
    over_seeds, deciding = ([line.pop(key) for line in lines] for key in ("_over_seeds", "_deciding"))
    if not told_apart:
        p_values = [(one.difference_p(), math.nan) for one in over_seeds]
    else:
        p_values = _all_together(deciding)
        for line, (p, q), alone in zip(lines, p_values, _all_together(over_seeds), strict=True):
            line |= _columns(line) | {"difference_p": p, "equivalence_p": q}
            line["_equivalent"] = "yes" if q <= LEVEL else ABSENT
            line["verdict_these_rows"] = _verdict(line, *alone)
    for line, (p, q) in zip(lines, p_values, strict=True):
        line["verdict"] = _verdict(line, p, q)


def _all_together(estimates: list[Estimate]) -> list[tuple[float, float]]:
    """p-values of a difference and of equivalence, each by Holm for all of these estimates together."""
    different = holm([one.difference_p() for one in estimates])
    return list(zip(different, holm([one.equivalence_p(MARGIN) for one in estimates]), strict=True))


def _columns(line: Row) -> Row:
    """The intervals over rows and over both, as numbers and as texts."""
    by_rows = line["_by_rows"]
    columns: Row = {"decided_by": "both" if by_rows else "seeds"}
    summary = Summary.from_columns(line, "difference")
    columns["_mean"] = formatting.points(summary.mean) if summary.n else ABSENT
    columns["_seeds"] = formatting.interval(summary)
    for name in ("rows", "both"):
        low, high = by_rows[name].interval() if by_rows else (math.nan, math.nan)
        columns |= {f"{name}_low": low, f"{name}_high": high, f"_{name}": formatting.span(low, high)}
    return columns


def _verdict(line: Row, different_p: float, equivalent_p: float) -> str:
    return (
        verdict(line["difference_mean"], different_p, equivalent_p, line["_claimed"])
        if line["difference_n"] > 1
        else ABSENT
    )


def verdict(mean: float, different_p: float, equivalent_p: float, claimed: bool) -> str:
    """What the p-values of a difference and of equivalence (NaN: not tested) say of a claim or question."""
    if different_p <= LEVEL:
        answers = ("shown", "refuted") if claimed else ("ahead", "behind")
        return answers[mean < 0]
    return "equivalent" if equivalent_p <= LEVEL else "open"
