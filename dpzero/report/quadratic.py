"""Report of the sweep `quadratic`: exponents of the dimension with verdicts, gradient norms, two figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpzero.report import drawing, power_law, style
from dpzero.report.power_law import Fit
from dpzero.report.statistics import Summary, summarise
from dpzero.report.table import ABSENT, Column, Row, Table, notes, number

RANKS = {
    "rank_d": "O(d)",
    "rank_sqrt_d": "O(√d)",
    "rank_log_d": "O(log d)",
    "rank_log_d_one_coordinate": "O(log d), data in one coordinate",
}
METHODS = ("dpzero", "dpgd_0th", "dp_sgd", "mezo", "sgd")  # in this order
PUBLISHED = {  # in words: figures 1 and 2 of the paper have no numbers
    ("dpzero", "rank_d"): "grows with d",
    ("dpzero", "rank_log_d"): "nearly independent of d",
    ("dp_sgd", "rank_d"): "grows with d",
    ("dp_sgd", "rank_log_d"): "nearly independent of d",
    **{("dpgd_0th", rank): "grows strongly with d, the worst" for rank in list(RANKS)[:3]},
}
Draw = Callable[[Axes, list, dict], tuple[float, float, str]]
LABEL_GAP = 0.075  # of the height of a panel
CONVERGED = 1e-8  # of the norm at the start: a smaller norm is rounding and has no exponent
GRIDS = ("steps", "learning_rates", "clips")


@dataclass(frozen=True)
class Best:
    """The best setting of one rank law, dimension and method, with its norm for each seed."""

    rank: str
    dimension: int
    method: str
    title: str
    private: bool
    start: float
    effective_rank: float
    train: tuple[float, ...]
    test: tuple[float, ...]
    setting: dict[str, float]
    at_edge: tuple[str, ...]
    by_steps: dict[int, float]  # steps -> mean norm of the best setting with so many

    @property
    def seeds(self) -> Summary:
        return summarise(self.train)


def tables(runs: pandas.DataFrame) -> dict[str, Table]:
    bests = best(runs)
    return {"exponents": exponents_table(bests), "norms": norms_table(bests)}


def figures(runs: pandas.DataFrame) -> dict[str, Figure]:
    bests = best(runs)
    return {"quadratic": by_dimension(bests), "quadratic_steps": by_steps(bests)}


def best(runs: pandas.DataFrame) -> list[Best]:
    """One `Best` for each rank law, dimension and method that has a run, in the order of the tables."""
    done = runs[runs["status"] == "ok"]
    groups = dict(list(done.groupby(["task", "settings.dimension", "method"])))
    order = {name: place for place, name in enumerate((*RANKS, *METHODS))}
    keys = sorted(groups, key=lambda key: (order.get(key[0], 99), key[1], order.get(key[2], 99)))
    return [
        _best(rank, dimension, method, groups[rank, dimension, method]) for rank, dimension, method in keys
    ]


def _best(rank: str, dimension: int, method: str, rows: pandas.DataFrame) -> Best:
    first = rows.iloc[0]
    grids = [
        json.loads(first[f"settings.{name}"])
        for name in GRIDS
        if isinstance(first.get(f"settings.{name}"), str)
    ]
    train, test = (_norms(rows[f"quadratic.{split}"]) for split in ("train", "test"))
    means = train.mean(0)
    place = numpy.unravel_index(means.argmin(), means.shape)
    chosen = dict(zip(GRIDS, zip(place, grids, strict=False), strict=False))
    return Best(
        rank=rank,
        dimension=int(dimension),
        method=method,
        title=first["title"],
        private=bool(first["private"]),
        start=float(rows["quadratic.start"].mean()),
        effective_rank=float(first["quadratic.effective_rank"]),
        train=tuple(train[(slice(None), *place)].tolist()),
        test=tuple(test[(slice(None), *numpy.unravel_index(test.mean(0).argmin(), means.shape))].tolist()),
        setting={name: grid[index] for name, (index, grid) in chosen.items()},
        at_edge=tuple(name for name, (index, grid) in chosen.items() if index in (0, len(grid) - 1)),
        by_steps=dict(zip(grids[0], means.min((1, 2)).tolist(), strict=True)),
    )


def _norms(column: pandas.Series) -> numpy.ndarray:
    """Norms [seeds, steps, learning rates, clips]; infinite if a run diverged."""
    norms = numpy.array([json.loads(text) for text in column], dtype=float)  # null: not a number
    return numpy.where(numpy.isnan(norms), numpy.inf, norms)


def fits(bests: Sequence[Best], split: str = "train") -> dict[tuple[str, str], Fit | None]:
    """(rank law, method) -> fit over the dimensions; None for too few, or if one converged to rounding."""
    series: dict[tuple[str, str], dict[int, float]] = {}
    for one in bests:
        norms = getattr(one, split)
        converged = min(norms) <= CONVERGED * one.start
        logs = series.setdefault((one.rank, one.method), {})
        logs[one.dimension] = -math.inf if converged else numpy.log(norms).mean()
    return {key: power_law.power(logs) if power_law.enough(logs) else None for key, logs in series.items()}


def exponents_table(bests: Sequence[Best]) -> Table:
    """One row for each rank law and method; the verdicts are the first notes."""
    columns = (
        Column("effective rank", "task", _rank_name),
        Column("Tr A", "_rank"),
        Column("method", "_title"),
        Column("exponent, best of grid", "_train"),
        Column("exponent on test, best of grid", "_test"),
        Column("norm at the smallest d", "_first"),
        Column("norm at the largest d", "_last"),
        Column("seeds", "seeds", "d"),
        Column("published", "published"),
    )
    table = Table("Exponent of the dimension d in the best-of-grid gradient norm", columns)
    fitted = {split: fits(bests, split) for split in ("train", "test")}
    for rank, method in fitted["train"]:
        ones = [one for one in bests if (one.rank, one.method) == (rank, method)]
        first, last = ones[0], ones[-1]
        row: Row = {"task": rank, "method": method, "published": PUBLISHED.get((method, rank), ABSENT)}
        row |= {"seeds": first.seeds.n, "dimension_first": first.dimension, "dimension_last": last.dimension}
        row |= {"norm_first": first.seeds.mean, "norm_last": last.seeds.mean}
        for split, fit in ((split, some[rank, method]) for split, some in fitted.items()):
            row |= {f"{split}_{key}": getattr(fit, key, None) for key in ("exponent", "low", "high")}
            row[f"_{split}"] = str(fit or ABSENT)
        row |= {
            f"_{end}": f"{number(one.seeds.mean, '.2g')} at {one.dimension}"
            for end, one in (("first", first), ("last", last))
        }
        row |= {"_rank": f"{first.effective_rank:.3g} to {last.effective_rank:.4g}", "_title": first.title}
        table.rows.append(row)
    verdicts = power_law.verdict(fitted["train"], RANKS, _norm_ratios(bests))
    table.notes = [*verdicts, *notes("quadratic"), *notes("quadratic_exponents")]
    return table


def _rank_name(rank: str) -> str:
    return RANKS.get(rank, rank)


def _norm_ratios(bests: Sequence[Best]) -> dict[str, dict[int, float]]:
    """Rank law -> dimension -> MeZO's norm over DPZero's, if both have run."""
    means = {(one.rank, one.method, one.dimension): one.seeds.mean for one in bests}
    ratios: dict[str, dict[int, float]] = {}
    for (rank, method, dimension), mean in means.items():
        if method == "dpzero" and (rank, "mezo", dimension) in means:
            ratios.setdefault(rank, {})[dimension] = means[rank, "mezo", dimension] / mean
    return ratios


def norms_table(bests: Sequence[Best]) -> Table:
    """One row for each rank law, dimension and method."""
    columns = (
        Column("effective rank", "task", _rank_name),
        Column("d", "dimension", "d"),
        Column("method", "_title"),
        Column("norm at the start", "start", ".3g"),
        Column("best of grid", "_train"),
        Column("best of grid on test", "_test"),
        *(Column(name.replace("_", " ").removesuffix("s"), f"_{name}") for name in GRIDS),
    )
    table = Table("Best-of-grid gradient norm, and the setting that has it", columns)
    for one in bests:
        train, test = one.seeds, summarise(one.test)
        row = {"task": one.rank, "dimension": one.dimension, "method": one.method, "start": one.start}
        row |= {"train": train.mean, "train_low": train.low, "train_high": train.high, "seeds": train.n}
        row |= {"test": test.mean} | one.setting | {"at_edge": " ".join(one.at_edge)}
        row |= {"_title": one.title, "_train": _interval(train), "_test": _interval(test)}
        for name in GRIDS:
            row[f"_{name}"] = number(one.setting.get(name), "g") + ("*" if name in one.at_edge else "")
        table.rows.append(row)
    table.notes = ["*: the first or the last value of that grid.", *notes("quadratic")]
    return table


def _interval(summary: Summary) -> str:
    half = (summary.high - summary.low) / 2
    return number(summary.mean, ".3g") + ("" if math.isnan(half) else f" ± {half:.1g}")


def by_dimension(bests: Sequence[Best]) -> Figure:
    """Best-of-grid norm against d: a panel for each rank law, the exponent at the end of each line."""
    fitted = fits(bests)

    def draw(axis: Axes, ones: list[Best], strokes: dict) -> tuple[float, float, str]:
        x, seeds = [one.dimension for one in ones], [one.seeds for one in ones]
        y = [some.mean for some in seeds]
        enough = [some.n >= drawing.SMALLEST_N_WITH_BAR for some in seeds]
        up = [(some.high - some.mean) * bar for some, bar in zip(seeds, enough, strict=True)]
        down = [min(half, 0.9 * middle) for half, middle in zip(up, y, strict=True)]  # the axis has no zero
        axis.errorbar(x, y, [down, up], elinewidth=0.7, capsize=1.5, **strokes)
        fit = fitted[ones[0].rank, ones[0].method]
        return x[-1], y[-1], f"{fit.exponent:.2f}".replace("-", "−") if fit else ""

    return _panels(bests, draw, "dimension d (line ends: exponent of d)")


def by_steps(bests: Sequence[Best]) -> Figure:
    """At the largest d: the norm of the best setting with so many steps."""

    def draw(axis: Axes, ones: list[Best], strokes: dict) -> tuple[float, float, str]:
        x, y = zip(*ones[-1].by_steps.items(), strict=True)
        axis.plot(x, y, **strokes)
        return x[-1], y[-1], ""

    largest = max(one.dimension for one in bests)
    return _panels([one for one in bests if one.dimension == largest], draw, f"steps T, at d = {largest}")


def _panels(bests: Sequence[Best], draw: Draw, label: str) -> Figure:
    """One panel for each rank law. `draw` draws a method and returns the end of its line and its text."""
    ranks = list(dict.fromkeys(one.rank for one in bests))
    columns = min(2, len(ranks))
    rows = -(-len(ranks) // columns)
    figure, axes = drawing.canvas(rows, columns, 2.0, sharex=True)
    for axis, rank in zip(axes.flat, ranks, strict=False):
        axis.set(xscale="log", yscale="log", title=f"effective rank {RANKS.get(rank, rank)}")
        ends = []
        for method in METHODS:
            ones = [one for one in bests if (one.rank, one.method) == (rank, method)]
            if ones:
                strokes = style.strokes(vars(ones[0]))
                ends.append((*draw(axis, ones, strokes), strokes["color"]))
        _frame(axis, [one for one in bests if one.rank == rank])
        _label_ends(axis, ends)
    for axis in axes.flat[len(ranks) :]:
        axis.remove()
    for axis in axes[-1]:
        axis.set_xlabel(label)
    for axis in axes[:, 0]:
        axis.set_ylabel("gradient norm, best of grid")
    named = {
        label: stroke
        for axis in axes.flat
        for stroke, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    titles = dict.fromkeys(one.title for one in sorted(bests, key=lambda one: METHODS.index(one.method)))
    labels = [title for title in titles if title in named]
    handles = [named[label] for label in labels]
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), handlelength=2.4)
    return figure


def _frame(axis: Axes, ones: Sequence[Best]) -> None:
    """Limits for the private methods; methods without privacy that converge leave the panel."""
    kept = [norm for one in ones if one.private for norm in (*one.train, one.start)]
    axis.set_ylim(0.4 * min(kept or [1e-3]), 2 * max(kept or [1.0]))


def _label_ends(axis: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """The text at the end of each line, moved up or down if two would touch."""
    low, high = numpy.log(axis.get_ylim())
    shown = [end for end in ends if end[2] and low < math.log(end[1]) < high]
    heights = [(math.log(y) - low) / (high - low) for _, y, _, _ in shown]
    for (x, _, text, colour), height in zip(shown, drawing.spread(heights, LABEL_GAP), strict=True):
        drawing.write(axis, text, (x, height), (6, 0), ("data", "axes fraction"), color=colour)
