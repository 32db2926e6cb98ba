"""A sweep as an RO-Crate, read back by the library of that format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from dpzero.errors import UsageError
from dpzero.report.crate import write_crate

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = (ROOT / "Snakefile", ROOT / "dpzero" / "sweeps" / "quick.yaml")
RUN = "r8/minilm/dpzero/eps-2/seed-0"


@pytest.fixture
def write(tmp_path):
    """write(out) -> number of files: the committed tables and figures of `quick` with one record."""
    record = tmp_path / "runs" / f"{RUN}.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    record.with_suffix(".transcript").write_bytes(b"scalars")
    folders = (tmp_path / "runs", ROOT / "results" / "quick" / "tables", ROOT / "figures" / "quick")

    def call(out: Path, tables: Path = folders[1]) -> int:
        places = (folders[0], tables, folders[2])
        return write_crate("quick", {"What is asked": "a question"}, WORKFLOW, [record], places, out)

    return call


def test_a_crate_has_the_files_and_says_what_made_them(write, tmp_path):
    count = write(tmp_path / "crate")
    crate = ROCrate(tmp_path / "crate")
    files = [entity for entity in crate.data_entities if "File" in entity.type]
    assert len(files) == count
    for entity in files:
        assert (tmp_path / "crate" / entity.id).is_file(), entity.id
    assert crate.mainEntity.id == "Snakefile" and "a question" in crate.description
    (sweep,) = crate.get_by_type("CreateAction")
    assert sweep["instrument"] is crate.mainEntity
    results = {entity.id for entity in sweep["result"]}
    assert {f"runs/{RUN}.json", f"runs/{RUN}.transcript", "tables/accuracy.csv"} <= results
    assert "figures/accuracy_vs_epsilon.png" in results


def test_a_crate_names_weights_and_rows_by_their_digest_and_the_code_by_its_commit(write, tmp_path):
    write(tmp_path / "crate.zip")
    crate = ROCrate(tmp_path / "crate.zip")
    recorded = json.loads((ROOT / "results" / "quick" / "tables" / "provenance.json").read_text("utf-8"))
    (sweep,) = crate.get_by_type("CreateAction")
    digests = {entity.get("sha256") for entity in sweep["object"]} - {None}
    assert digests == {asset["sha256"] for asset in recorded["models"] + recorded["data"]}
    versions = {
        entity["name"]: entity["softwareVersion"] for entity in crate.mainEntity["softwareRequirements"]
    }
    assert recorded["git"][0] in versions["dpzero"] and versions["torch"] == recorded["packages"]["torch"][0]


def test_a_sweep_without_tables_has_no_crate(write, tmp_path):
    with pytest.raises(UsageError, match=r"there is no provenance\.json"):
        write(tmp_path / "crate", tables=tmp_path)
