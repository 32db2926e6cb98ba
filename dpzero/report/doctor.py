"""Report of the study `doctor`: one page of tables, one for each section of its JSON result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas

from dpzero.errors import UsageError
from dpzero.report import provenance
from dpzero.report.table import GIB, Row, Table, make_table


def write(file: Path, folder: Path) -> list[Path]:
    """Write doctor.md, and a CSV file for each section that has rows; return the files.

    Raises UsageError if the file is no result of `doctor`.
    """
    try:
        result = json.loads(file.read_text("utf-8"))
        page, contents = _page(result)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{file} is no result of `doctor` ({error!r}): run that first") from None
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (contents | {"doctor.md": page}).items():
        (folder / name).write_text(content, "utf-8", newline="\n")
    return [folder / name for name in ("doctor.md", *contents)]


def tables(result: dict[str, Any]) -> dict[str, Table]:
    """The table of each section that has rows."""
    return {
        name: make_table(f"doctor_{name.replace(' ', '_')}", [_readable(name, row) for row in part["rows"]])
        for name, part in result["sections"].items()
        if part["rows"]
    }


def _page(result: dict[str, Any]) -> tuple[str, dict[str, str]]:
    source = provenance.source(pandas.json_normalize({"provenance": result["provenance"]}))
    lines, contents = [f"# What this machine does: {result['provenance']['device']}", ""], {}
    by_section = tables(result)
    for name, part in result["sections"].items():
        lines += [f"## {name.capitalize()}", "", _state(part), ""]
        if table := by_section.get(name):
            notes = [f"- {note}" for note in table.notes]
            lines += [f"**{table.title}**", "", *table.markdown_lines(), "", *notes, ""]
            contents[f"{name.replace(' ', '_')}.csv"] = table.csv()
    return "\n".join([*lines, f"Provenance: {source}.", ""]), contents


def _state(part: dict[str, Any]) -> str:
    seconds = f"{part['seconds']:.0f} s"
    if part["status"] == "ok":
        return f"Done in {seconds}."
    done = f"{len(part['rows'])} rows in {seconds}, then " if part["rows"] else ""
    sentence = f"{done}{part['status']}: {part['reason']}."
    return sentence[0].upper() + sentence[1:]


def _readable(section: str, row: Row) -> Row:
    """What readers see of a row beside its values."""
    row = dict(row)
    if section == "packages":
        row["_version"] = row["version"] or f"missing: {row['advice']}"
    if section == "devices":
        row["_use"] = f"{row['directions']}: {row['reason']}"
    if section in ("same bits", "ranks"):
        row["_same"] = "the same bits" if row["same"] else f"differ: {row['difference']}"
    if section in ("step costs", "memory", "learning"):
        row["_status"] = row["status"] + (f": {row['error']}" if row.get("error") else "")
        row["_method"] = row.get("title", "") + ("" if row["status"] == "ok" else f" ({row['_status']})")
    if row.get("step_floor_seconds"):
        row["floor_ratio"] = row["step_floor_seconds"] / row["two_forward_floor_seconds"]
    if section == "memory" and row["measured_peak_bytes"]:
        row["over_inference"] = row["measured_peak_bytes"] / row["measured_inference_peak_bytes"]
        if row["predicted_peak_bytes"]:
            row["measured_over_predicted"] = row["measured_peak_bytes"] / row["predicted_peak_bytes"]
    if section == "largest models":
        row |= {"_model": row["model"] or "none", "_device": f"{row['memory_bytes'] / GIB:.0f} GiB"}
    return row
