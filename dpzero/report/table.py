"""A table: rows of values and columns for readers, written as CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pandas
import yaml

ABSENT = "–"
ONLY_IF_GIVEN = ("_user_epsilon", "_selective_epsilon", "selective_epsilon_spent")  # columns
MIB, GIB = 2**20, 2**30
UNITS = {"MiB": MIB, "GiB": GIB, "percent": 0.01}
LATEX_SYMBOLS = {
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "∞": r"$\infty$",
    "ε": r"$\varepsilon$",
    "δ": r"$\delta$",
    "μ": r"$\mu$",
    "×": r"$\times$",
    "√": r"$\surd$",
}
Row = dict[str, Any]


class Column(NamedTuple):
    """A column for readers: its heading, the key of its value, a format, and what the value is divided by."""

    heading: str
    key: str
    format: str = ""
    unit: float = 1

    def text(self, row: Row) -> str:
        """The text of this column in one row; a dash without a value."""
        value = row.get(self.key)
        return value if isinstance(value, str) else number(value, self.format, self.unit)


@dataclass
class Table:
    """Rows of values, and the columns that readers see of them.

    A key that begins with `_` holds something for readers and is not in the CSV. `readers` are the rows of Markdown
    and LaTeX if these differ from the rows of the CSV.
    """

    title: str
    columns: Sequence[Column]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    provenance: str = ""
    runs: pandas.DataFrame | None = None  # the runs of the table, if these are not all
    readers: list[Row] | None = None

    def mark(self, words: str) -> None:
        """Begin the title with these words, and each row with the first of them, so that no copy is without."""
        self.title = f"{words}. {self.title}"
        name = words.split()[0].lower()
        self.columns = [Column(name, name), *self.columns]
        self.rows = [{name: "yes"} | row for row in self.rows]
        self.readers = None if self.readers is None else [{name: "yes"} | row for row in self.readers]

    def csv(self) -> str:
        """The values of the rows, without formats; absent values are empty."""
        rows = [{key: value for key, value in row.items() if key[0] != "_"} for row in self.rows]
        columns = None if rows else ["task", "model", "method"]
        return csv_text(pandas.DataFrame(rows, columns=columns, dtype=object))

    def markdown(self) -> str:
        """Title, table, one bullet for each note, the provenance last."""
        notes = [f"- {note}" for note in self._all_notes()]
        return "\n".join([f"**{self.title}**", "", *self.markdown_lines(), "", *notes]) + "\n"

    def markdown_lines(self) -> list[str]:
        """The lines of the table alone, columns aligned."""
        lines = [[column.heading for column in self.columns], *self._texts()]
        lines = [[" ".join(cell.split()).replace("|", r"\|") for cell in line] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        heading, *body = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
        return [heading, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *body]

    def latex(self) -> str:
        """A booktabs tabular without float, to stand in a `table`; title and notes are comments above it."""
        comments = [f"% {' '.join(text.split())}" for text in (self.title, *self._all_notes())]
        cells = pandas.DataFrame(self._texts(), columns=[column.heading for column in self.columns])
        style = cells.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        body = style.to_latex(hrules=True, column_format="l" * len(cells.columns))
        for symbol, command in LATEX_SYMBOLS.items():
            body = body.replace(symbol, command)
        return "\n".join(comments) + "\n" + body

    def _texts(self) -> list[list[str]]:
        rows = self.rows if self.readers is None else self.readers
        return [[column.text(row) for column in self.columns] for row in rows]

    def _all_notes(self) -> list[str]:
        return [*self.notes, f"Provenance: {self.provenance}."]


def make_table(name: str, rows: list[Row], /, **values: Any) -> Table:
    """The table of this name in tables.yaml with these rows; `values` stand in its braces."""
    definition = _definitions()[name]
    columns = []
    for heading, key in definition["columns"].items():
        key, *more = key if isinstance(key, list) else [key]
        column = Column(heading.format(**values), key, *more[:1], *(UNITS[unit] for unit in more[1:]))
        if key not in ONLY_IF_GIVEN or any(not pandas.isna(row.get(key)) for row in rows):
            columns.append(column)
    return Table(definition["title"].format(**values), columns, rows, notes(name, **values))


def notes(name: str, **values: Any) -> list[str]:
    """The notes of this name in tables.yaml, with these values in their braces."""
    return [text.format(**values) for text in _definitions()[name]["notes"]]


@cache
def _definitions() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text("utf-8"))


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


def number(value: Any, form: str, unit: float = 1) -> str:
    """`value` / `unit` in this format, which may end with ×, with a real minus sign; a dash for no value."""
    if pandas.isna(value):
        return ABSENT
    times = "×" if form.endswith("×") else ""
    text = format(value if unit == 1 else value / unit, form.removesuffix("×"))
    return text.replace("-", "−") + times
