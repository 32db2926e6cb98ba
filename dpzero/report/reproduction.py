"""Whether one folder of results reproduces another: bit for bit, within intervals, or not. For people and for programs."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from dpzero.errors import UsageError
from dpzero.report import archive, formatting
from dpzero.report.agreement import (
    BEST_VERDICTS,
    NO,
    NO_SCORES,
    WITHIN,
    YES,
    Compared,
    Pair,
    compared,
    row_of,
)
from dpzero.report.differences import Recorded, parting, transcript_is_other
from dpzero.report.provenance import plural
from dpzero.report.records import read_record
from dpzero.report.table import Row, make_table, number
from dpzero.report.template import sentences

LONGEST = 40  # rows of the table
SHOWN = 3  # names in a sentence


class Results(NamedTuple):
    """The records of a result folder by run id, or of a folder of several sweeps by SWEEP/RUN.

    `damaged` says by the same names why a file is no record of its run.
    """

    several: bool
    records: dict[str, Recorded]
    damaged: dict[str, str]


def read(folder: Path) -> Results:
    """The records of results/SWEEP, or of each sweep in a folder; a sweep without records may have an archive of them.

    Raises UsageError for a folder without records.
    """
    if not (folder / archive.RUNS).is_dir() and (folder / archive.NAME).exists():
        with tempfile.TemporaryDirectory() as unpacked:
            archive.unpack(folder, Path(unpacked))
            return read(Path(unpacked))
    several = not (folder / "runs").is_dir()
    sweeps = {f"{runs.parent.name}/": runs for runs in sorted(folder.glob("*/runs"))}
    results = Results(several, {}, {})
    for sweep, runs in (sweeps if several else {"": folder / "runs"}).items():
        for file in sorted(runs.rglob("*.json")):
            run = file.relative_to(runs).with_suffix("").as_posix()
            try:
                record = read_record(file)
                if record["run"] != run:
                    raise UsageError(f"{file} holds another run, {record['run']}")
                recorded = Recorded(record, file)
                if transcript_is_other(recorded):
                    raise UsageError(f"{file} names another transcript than the one beside it")
                results.records[sweep + run] = recorded
            except UsageError as error:
                results.damaged[sweep + run] = str(error)
    if not results.records and not results.damaged:
        raise UsageError(
            f"{folder} holds no records: give results/SWEEP, with its folder runs, or a folder of such folders"
        )
    return results


class Comparison:
    """Two result folders side by side.

    Args:
        partial: whether the records that one side alone has are left out; otherwise they are not reproduced.

    Raises:
        UsageError: one folder is of a sweep, the other of several.
    """

    def __init__(self, mine: Results, theirs: Results, partial: bool = False) -> None:
        if mine.several != theirs.several:
            raise UsageError(
                "one folder is of a sweep and the other of several: give results/SWEEP twice, or results twice"
            )
        self.partial = partial
        self.only = {"mine": _only(mine, theirs), "theirs": _only(theirs, mine)}
        self.damaged = [*mine.damaged.values(), *theirs.damaged.values()]
        both = [run for run in mine.records if run in theirs.records]
        self.pairs = [Pair(run, mine.records[run], theirs.records[run]) for run in both]
        self.rows = compared(self.pairs)

    @property
    def verdict(self) -> str:
        """YES: all records agree to the last bit. WITHIN: all rows do so, or within their intervals. Else NO."""
        best = {BEST_VERDICTS[row.outcome] for row in self.rows}
        one_sided = any(self.only.values()) and not self.partial
        if self.damaged or one_sided or NO in best or not best:
            return NO
        return WITHIN if WITHIN in best else YES

    @property
    def tested(self) -> list[Compared]:
        """The rows with an interval, the narrowest first."""
        return sorted((row for row in self.rows if row.half_width > 0), key=lambda row: row.half_width)

    def answer(self) -> dict[str, Any]:
        """The answer of the command, for programs."""
        records = {"compared": len(self.pairs), "bit_for_bit": sum(pair.same for pair in self.pairs)}
        records |= {f"only_{side}": len(runs) for side, runs in self.only.items()}
        rows = dict(Counter(row.outcome.replace(" ", "_") for row in self.rows))
        return {
            "reproduced": self.verdict,
            "match": self.verdict != NO,
            "records": records | {"damaged": len(self.damaged)},
            "rows": rows | {f"only_{side}": len(self.rows_of(side)) for side in self.only},
            "widest_half_interval": self.tested[-1].half_width if self.tested else None,
            "differences": [one._asdict() for one in differences(self.pairs, same=False)],
            "same_in_spite_of": [one._asdict() for one in differences(self.pairs, same=True)],
            "damaged": self.damaged,
        }

    def rows_of(self, side: str) -> list[str]:
        """The rows that this side alone has."""
        return sorted({*map(row_of, self.only[side])} - {row.name for row in self.rows})

    def text(self) -> str:
        """The answer for people: a table of the rows that differ in some bit, and a sentence for each finding."""
        worst_first = [*reversed(BEST_VERDICTS)]
        listed = [row for row in self.rows if row.outcome not in NO_SCORES]
        listed.sort(key=lambda row: worst_first.index(row.outcome))
        by_outcome = {
            outcome: [row.name for row in self.rows if row.outcome == outcome] for outcome in BEST_VERDICTS
        }
        values = {
            "one": self,
            "by_outcome": by_outcome,
            "unlisted": len(listed) - LONGEST,
            "differing": differences(self.pairs, same=False),
            "same": differences(self.pairs, same=True),
        }
        table = make_table("reproduction", [_line(row) for row in listed[:LONGEST]])
        shown = [*table.markdown_lines(), ""] if listed else []
        found = sentences("reproduction", values, plural=plural, few=_few, points=_points)
        return "\n".join([*shown, *found, "", f"reproduced: {self.verdict}"])


class Difference(NamedTuple):
    """Records that differ in the same kinds of causes; of the first of them what differs, and where its numbers part, if they do."""

    records: int
    kinds: list[str]
    first: str
    causes: dict[str, str]
    parting: str


def differences(pairs: list[Pair], same: bool) -> list[Difference]:
    """What differs between the records that agree to the last bit, or between all others; the commonest first."""
    by_kinds: dict[tuple[str, ...], list[Pair]] = {}
    for pair in pairs:
        if pair.same == same and (pair.causes or not same):
            by_kinds.setdefault(tuple(pair.causes), []).append(pair)
    found = []
    for kinds, alike in sorted(by_kinds.items(), key=lambda item: -len(item[1])):
        first = min(alike, key=lambda pair: pair.mine.record.get("transcript") is None)  # it tells the step
        where = "" if same else parting(first.mine, first.theirs)
        found.append(Difference(len(alike), list(kinds), first.run, first.causes, where))
    return found


def _only(one: Results, other: Results) -> list[str]:
    """The runs that one side has and the other has not, not even damaged."""
    return [run for run in one.records if run not in other.records and run not in other.damaged]


def _line(row: Compared) -> Row:
    """The texts of a row in the table."""
    mine, theirs = (number(100 * score, ".1f") for score in row.scores)
    mean, half = row.difference.mean, row.half_width
    difference = formatting.points(mean) + (
        f" {formatting.span(mean - half, mean + half)}" if half > 0 else ""
    )
    texts = {"row": row.name, "seeds": str(len(row.pairs)), "mine": mine, "theirs": theirs}
    return texts | {"difference": difference, "outcome": row.outcome}


def _few(names: list[str]) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _points(share: float) -> str:
    return number(100 * share, ".1f")
