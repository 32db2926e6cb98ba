"""One table -> CSV, Markdown and LaTeX. The three say the same; only the CSV holds bare numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy
import pandas

ABSENT = "–"
LATEX_SYMBOLS = {
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "∞": r"$\infty$",
    "ε": r"$\varepsilon$",
    "δ": r"$\delta$",
}
LATEX_SYMBOLS |= {"μ": r"$\mu$", "×": r"$\times$", "√": r"$\surd$"}


@dataclass
class Table:
    """One line of a table is a dict in `values`, numbers for the CSV, and a dict in `shown`, text for readers."""

    title: str
    values: list[dict[str, Any]] = field(default_factory=list)
    shown: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    provenance: str = ""
    of: pandas.DataFrame | None = None  # its runs, where these are not all

    def add(self, values: dict[str, Any], shown: dict[str, str]) -> None:
        """Append one line."""
        self.values.append(values)
        self.shown.append(shown)

    def csv(self) -> str:
        """Plain numbers, absent values empty."""
        return csv_text(_frame(self.values))

    def markdown(self) -> str:
        """Title, table, one bullet a note, provenance last."""
        cells = _frame(self.shown)
        rows = [
            [" ".join(cell.split()).replace("|", r"\|") for cell in row]
            for row in (cells.columns, *cells.to_numpy())
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        heading, *lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        notes = [f"- {note}" for note in self._notes()]
        return "\n".join([f"**{self.title}**", "", heading, rule, *lines, "", *notes]) + "\n"

    def latex(self) -> str:
        """A booktabs tabular without float, to stand in a `table`; title and notes are comments above it."""
        comments = [f"% {' '.join(text.split())}" for text in (self.title, *self._notes())]
        cells = _frame(self.shown)
        style = cells.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        body = style.to_latex(hrules=True, column_format="l" * len(cells.columns))
        for symbol, command in LATEX_SYMBOLS.items():
            body = body.replace(symbol, command)
        return "\n".join(comments) + "\n" + body

    def _notes(self) -> list[str]:
        return [*self.notes, f"Provenance: {self.provenance}."]


def _frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    return pandas.DataFrame(rows, columns=None if rows else ["task", "model", "method"], dtype=object)


def csv_text(frame: pandas.DataFrame) -> str:
    """The frame as CSV: numbers with ten significant digits, `true` and `false`, absent values empty."""
    plain = {name: [_plain(value) for value in frame[name]] for name in frame}
    return pandas.DataFrame(plain, dtype=object).to_csv(index=False, lineterminator="\n")


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return "" if value == ABSENT else value
    if pandas.isna(value):
        return ""
    if isinstance(value, bool | numpy.bool_):
        return str(bool(value)).lower()
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:.10g}"


def number(value: Any, form: str) -> str:
    """`value` in this format with a real minus sign, or a dash where there is none."""
    return ABSENT if pandas.isna(value) else format(value, form).replace("-", "−")


def mebibytes(value: Any) -> str:
    """Bytes as MiB with two decimals."""
    return ABSENT if pandas.isna(value) else number(value / 2**20, ".2f")
