"""A sweep as an RO-Crate: its records, tables and figures with what made them, in words that other tools read.

The crate follows the profiles Process Run and Workflow Run (https://w3id.org/ro/wfrun): an action, the sweep, whose
instrument is the workflow, with its inputs and results.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

from dpzero import __version__
from dpzero.errors import UsageError
from dpzero.report import DOCUMENTS, title_of

LICENCE = "https://spdx.org/licenses/Apache-2.0"
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
SPECIFICATION = "https://w3id.org/ro/crate/1.1"
WORKFLOW_PROFILE = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"


def write_crate(
    sweep: str,
    asked: dict[str, str],
    workflow: tuple[Path, Path],
    records: list[Path],
    folders: tuple[Path, Path, Path],
    out: Path,
) -> int:
    """Write the crate of a sweep: copies of its files, and ro-crate-metadata.json.

    Args:
        sweep: its name.
        asked: heading -> answer, what the sweep asks and how.
        workflow: the Snakefile and the file of the sweep.
        records: the record files of the runs; the transcripts beside them come along.
        folders: of the records, the tables and the figures.
        out: folder that is made, or a file that ends in .zip.

    Returns:
        The number of files in the crate.

    Raises:
        UsageError: the sweep has no provenance.json yet.
    """
    from rocrate.model.contextentity import ContextEntity
    from rocrate.model.softwareapplication import SoftwareApplication
    from rocrate.rocrate import ROCrate

    run_folder, tables, figures = folders
    if not (tables / "provenance.json").exists():
        raise UsageError(f"there is no provenance.json in {tables}: run the sweep first")
    provenance = json.loads((tables / "provenance.json").read_text("utf-8"))
    crate = ROCrate(version="1.1")
    crate.name = f"dpzero, sweep {sweep}"
    crate.description = " ".join(f"{heading}: {answer}." for heading, answer in asked.items()).replace(
        "..", "."
    )
    crate.license = crate.add(ContextEntity(crate, LICENCE, {"@type": "CreativeWork", "name": "Apache-2.0"}))
    newest = datetime.datetime.fromtimestamp(max(path.stat().st_mtime for path in records), datetime.UTC)
    crate.datePublished = newest.replace(microsecond=0)
    profiles = [
        crate.add(
            ContextEntity(
                crate, url, {"@type": "CreativeWork", "name": name, "version": url.rsplit("/", 1)[1]}
            )
        )
        for url, name in PROFILES.items()
    ]
    crate.root_dataset["conformsTo"] = profiles
    crate.metadata["conformsTo"] = [{"@id": SPECIFICATION}, {"@id": list(PROFILES)[-1]}]
    snakefile, sweep_file = workflow
    main = crate.add_workflow(snakefile, "Snakefile", main=True, lang="snakemake")
    main["name"] = "dpzero: from a sweep to its tables and figures"
    main["version"], main["encodingFormat"] = __version__, "text/plain"
    main["conformsTo"] = {"@id": WORKFLOW_PROFILE}
    text = "\n\n".join(
        [f"# {crate.name}", *(f"**{heading}.** {answer}" for heading, answer in asked.items())]
    )
    words = {"name": "what was asked", "about": {"@id": "./"}, "encodingFormat": "text/markdown"}
    crate.add_file(StringIO(f"{text}\n"), "README.md", properties=words)
    given = crate.add_file(sweep_file, f"sweep/{sweep_file.name}", properties=_about("the sweep", sweep_file))
    inputs = [given, *(crate.add(ContextEntity(crate, *one)) for one in _inputs(provenance))]
    software = [
        crate.add(SoftwareApplication(crate, identifier, _version(name, identifier, versions)))
        for name, identifier, versions in _software(provenance)
    ]
    main["softwareRequirements"] = software
    results = [
        crate.add_file(path, f"{folder}/{path.relative_to(base)}", properties=_about(words, path))
        for folder, base, path, words in _results(records, run_folder, tables, figures)
    ]
    ended = {"name": f"sweep {sweep}", "description": crate.description}
    ended |= {"endTime": newest.isoformat(timespec="seconds")}
    action = crate.add_action(
        main, identifier=f"#sweep-{sweep}", object=inputs, result=results, properties=ended
    )
    crate.root_dataset["mentions"] = action
    if out.suffix == ".zip":
        crate.write_zip(out)
    else:
        crate.write(out)
    return len(results) + 3


def _results(
    records: list[Path], run_folder: Path, tables: Path, figures: Path
) -> Iterable[tuple[str, Path, Path, str]]:
    """(folder in the crate, folder here, file, what it is) of every result."""
    for record in records:
        run = record.relative_to(run_folder).with_suffix("").as_posix()
        yield "runs", run_folder, record, f"record of run {run}"
        if (transcript := record.with_suffix(".transcript")).exists():
            yield "runs", run_folder, transcript, f"released scalars of run {run}"
    documents = {file: title_of(name).lower() for name, file in DOCUMENTS.items()}
    for path in sorted(tables.iterdir()):
        yield "tables", tables, path, documents.get(path.name, f"table: {title_of(path.stem).lower()}")
    for path in sorted(figures.iterdir()) if figures.is_dir() else ():
        yield "figures", figures, path, f"figure: {title_of(path.stem).lower()}"


def _about(words: str, path: Path) -> dict[str, Any]:
    kinds = {
        **{
            ".json": "application/json",
            ".csv": "text/csv",
            ".md": "text/markdown",
            ".tex": "application/x-tex",
        },
        **{".png": "image/png", ".pdf": "application/pdf", ".yaml": "application/yaml"},
    }
    kind = kinds.get(path.suffix, "application/octet-stream")
    return {"name": words, "encodingFormat": kind, "contentSize": str(path.stat().st_size)}


def _inputs(provenance: dict[str, Any]) -> Iterable[tuple[str, dict[str, str]]]:
    """Identifier and properties of each model and each task's rows, by their SHA-256."""
    for key, what in (("models", "weights"), ("data", "rows")):
        for number, asset in enumerate(provenance[key]):
            properties = {"@type": "CreativeWork", "name": f"{what} of {asset['name']}"}
            if asset["sha256"]:
                properties |= {"sha256": asset["sha256"]}
            yield f"#{what}-{number}-{asset['name']}", properties


def _software(provenance: dict[str, Any]) -> Iterable[tuple[str, str, list[str]]]:
    """Name, identifier (its address, if it has one) and versions of what computed the results."""
    commits = [f"commit {commit}" for commit in provenance["git"]]
    yield "dpzero", "#dpzero", commits + [f"code {code}" for code in provenance["code"]]
    yield "Python", "https://www.python.org", provenance["python"]
    for name, versions in provenance["packages"].items():
        yield name, f"#package-{name}", versions


def _version(name: str, identifier: str, versions: list[str]) -> dict[str, str]:
    url = {"url": identifier} if identifier.startswith("https:") else {}
    return {"name": name, "softwareVersion": ", ".join(versions)} | url
