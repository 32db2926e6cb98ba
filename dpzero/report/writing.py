"""Records -> files: every table and figure of a kind of experiment, with provenance and selection rules.

The module of a kind has `tables(runs)`, the main one first, and `figures(runs)`, each by name. If it writes further
files, it has `further_files(runs, sweep)`: their text by name.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas
from matplotlib.figure import Figure

from dpzero.errors import UsageError
from dpzero.report import provenance, style
from dpzero.report.records import load

MODULES = {
    "language": "training",
    "contextual-protection": "contextual_protection",
}  # kind -> module of this package, if it has another name
SELECTION = "metrics.selection"
CAPTIONS = Path(__file__).with_name("captions")


def write_tables(
    kind: str,
    records: list[Path],
    folder: Path,
    sweep: str,
    expected: list[str] | None = None,
    chosen: str | None = None,
) -> str:
    """Write each table of a sweep as NAME.csv, .md and .tex, and the further files (see `table_files`).

    Args:
        kind: a key of `KINDS`.
        records: files of these runs and no others.
        folder: made if it does not exist.
        sweep: its name.
        expected: run ids of the sweep; one without a record is a dash in the tables and named in a note.
        chosen: the rule by which the settings were chosen; every heading ends with it.

    Returns:
        The main table, Markdown.

    Raises:
        UsageError: a file is no record, or there is none.
    """
    report, runs = module_of(kind), load(records, expected)
    tables = report.tables(runs)
    union = json.dumps(provenance.union(runs, sweep), indent=2, ensure_ascii=False) + "\n"
    contents = {"provenance.json": union}
    if hasattr(report, "further_files"):
        contents |= report.further_files(runs, sweep)
    for name, table in tables.items():
        used = runs if table.runs is None else table.runs
        table.title = "; ".join(filter(None, (table.title, _reported(used), chosen)))
        table.notes += provenance.warnings(used)
        table.provenance = provenance.line(used, sweep)
        if words := provenance.rehearsal(runs):
            table.mark(words)
        contents |= {f"{name}.csv": table.csv(), f"{name}.md": table.markdown(), f"{name}.tex": table.latex()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    return contents[f"{next(iter(tables))}.md"]


def write_figures(
    kind: str, records: list[Path], folder: Path, sweep: str, expected: list[str] | None = None
) -> list[Path]:
    """Draw each figure of a sweep as PDF and PNG with its caption; return the files. Arguments: as for `write_tables`."""
    runs = load(records, expected)
    with style.settings():
        return save_figures(module_of(kind).figures(runs), runs, folder, sweep)


def save_figures(figures: dict[str, Figure], runs: pandas.DataFrame, folder: Path, sweep: str) -> list[Path]:
    """Write these figures of these runs as NAME.pdf and NAME.png, each with its caption as NAME.md."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths, source, words = [], provenance.line(runs, sweep), provenance.rehearsal(runs)
    for name, figure in figures.items():
        if words:
            style.headline(figure, words)
        style.footnote(figure, provenance.footnote(runs, sweep))
        paths += style.save(figure, Path(folder), name, source)
        more = filter(None, (words and f"{words}.", f"Provenance: {source}."))
        paths.append(write_caption(Path(folder) / f"{name}.md", name, *more))
    return paths


def write_caption(path: Path, name: str, *more: str) -> Path:
    """Write the caption of this name in captions/, and further paragraphs, as Markdown."""
    caption = CAPTIONS.joinpath(f"{name}.rst").read_text("utf-8").strip()
    path.write_text("\n\n".join([caption, *more]) + "\n", encoding="utf-8", newline="\n")
    return path


def write_study(study: str, result: Path, tables: Path, figures: Path) -> list[Path]:
    """Table and figure of a study with one JSON result: NAME.csv and .md, and NAME.pdf, .png and the caption .md.

    Args:
        study: `membership`, `benchmark` or `contextual-protection`.
        result: NAME.json, as the study wrote it.

    Returns:
        The files; their bytes are the same for the same result.

    Raises:
        UsageError: the file is no result of this study.
    """
    report, name = module_of(study), Path(result).stem
    try:
        content = json.loads(Path(result).read_text("utf-8"))
        table = report.table(content)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{result} is no result of `{study}` ({error!r}): run that first") from None
    for folder in (tables, figures):
        Path(folder).mkdir(parents=True, exist_ok=True)
    files = [Path(tables) / f"{name}.{suffix}" for suffix in ("csv", "md")]
    table.provenance = provenance.source(pandas.json_normalize({"provenance": content["provenance"]}))
    files[0].write_text(table.csv(), "utf-8")
    files[1].write_text(table.markdown(), "utf-8")
    with style.settings():
        files += style.save(report.figure(content), Path(figures), name, table.provenance)
    source = f"Provenance: {table.provenance}."
    return [*files, write_caption(Path(figures) / f"{name}.md", study, source)]


def module_of(kind: str) -> ModuleType:
    """The module of this package that reports a kind of experiment, or a study."""
    return import_module(f"dpzero.report.{MODULES.get(kind, kind)}")


def _reported(runs: pandas.DataFrame) -> str | None:
    """The rule that selects the reported checkpoint; None if no run reports one."""
    rules = provenance.distinct(runs[SELECTION]) if SELECTION in runs else []
    return f"reported: {' or '.join(rules)}" if rules else None
