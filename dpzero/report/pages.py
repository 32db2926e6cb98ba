"""The pages of `snakemake --report`: a landing page, and one with sortable tables for each table and document.

A page is one HTML file that needs no network. The pages are made of the files of tables and figures: equal files
give equal pages.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import pandas
from markdown_it import MarkdownIt

from dpzero.errors import UsageError
from dpzero.report import KINDS, LANDING, page_sources, title_of
from dpzero.report.template import page

RUN_COLUMNS = {  # of runs.csv -> heading; the file has settings and provenance, too
    "run": "run",
    "status": "status",
    "metric": "metric",
    "score": "score",
    "metrics.example_forwards": "example forwards",
    "privacy.epsilon_spent": "ε spent",
    "privacy.delta": "δ",
    "privacy.noise_scale": "noise scale",
    "privacy.valid_release": "valid release",
    "memory.peak_allocated_bytes": "peak (bytes)",
    "provenance.method_code": "code of the method",
}
MARKDOWN = MarkdownIt("js-default")  # tables, and no HTML from the text


def write_pages(
    kind: str,
    sweep: str,
    runs: Iterable[str],
    asked: dict[str, str],
    tables: Path,
    figures: list[Path],
    out: Path,
) -> list[Path]:
    """Write the landing page of a sweep and NAME.html for each of `page_sources`.

    Args:
        kind: a key of `KINDS`.
        sweep: its name.
        runs: run ids of the sweep.
        asked: heading -> answer, what the sweep asks and how: the beginning of the landing page.
        tables: folder of the tables, as `write_tables` leaves it.
        figures: PNG files; the first is shown on the landing page.
        out: folder of the pages, made if it does not exist. The links of the landing page contain it as it is
            given, since the report calls a page by its path.

    Returns:
        The files, the landing page first.

    Raises:
        UsageError: a table is not there.
    """
    sources = page_sources(kind, runs)
    for file in sources.values():
        if not (tables / file).exists():
            raise UsageError(f"there is no {file} in {tables}: run `python -m dpzero tables` first")
    out.mkdir(parents=True, exist_ok=True)
    main = KINDS[kind].tables[0]
    values = {
        "sweep": sweep,
        "asked": asked,
        "table": _from_markdown((tables / f"{main}.md").read_text("utf-8").split("\n\n- ")[0]),
        "main": main,
        "pages": [(title_of(name), f"{out}/{name}.html") for name in sources],
        "figures": [(title_of(figure.stem), str(figure)) for figure in figures],
        "picture": base64.encodebytes(figures[0].read_bytes()).decode() if figures else "",
    }
    paths = [out / LANDING]
    paths[0].write_text(_as_rst(page("landing.html", values)), encoding="utf-8", newline="\n")
    for name, file in sources.items():
        content = READERS.get(file, _from_markdown)((tables / file).read_text("utf-8"))
        text = page("page.html", {"title": f"{title_of(name)}: sweep {sweep}", "content": content})
        paths.append(out / f"{name}.html")
        paths[-1].write_text(text, encoding="utf-8", newline="\n")
    return paths


def _as_rst(html: str) -> str:
    """HTML as reStructuredText that Snakemake's templates leave as it is."""
    lines = "\n".join(f"   {line}" for line in html.splitlines())
    return f"{{% raw %}}\n.. raw:: html\n\n{lines}\n{{% endraw %}}\n"


def _from_markdown(text: str) -> str:
    return MARKDOWN.render(text)


def _runs(csv: str) -> str:
    """The runs as a table of `RUN_COLUMNS`, from the text of runs.csv."""
    runs = pandas.read_csv(StringIO(csv), dtype=str, keep_default_na=False)
    columns = {key: heading for key, heading in RUN_COLUMNS.items() if key in runs}
    return runs[list(columns)].rename(columns=columns).to_html(index=False, border=0)


def _provenance(text: str) -> str:
    """The union of the provenance as a table, from the text of provenance.json."""
    lines = [(key, _said(value)) for key, value in json.loads(text).items()]
    return pandas.DataFrame(lines, columns=["what", "value"]).to_html(index=False, border=0)


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_said(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    return str(value)


READERS: dict[str, Callable[[str], str]] = {"runs.csv": _runs, "provenance.json": _provenance}
