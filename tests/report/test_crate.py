"""A sweep as an RO-Crate, read back by the library of that format."""

from __future__ import annotations

import json
from datetime import datetime
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


def test_a_crate_keeps_to_its_profiles(write, tmp_path):
    """What RO-Crate 1.1, Process Run, Workflow Run and Workflow RO-Crate demand, but for authors, whom no record knows.

    The Python library of these profiles, roc-validator, needs the network for the context; it finds the same.
    """
    write(tmp_path / "crate")
    content = json.loads((tmp_path / "crate" / "ro-crate-metadata.json").read_text("utf-8"))
    assert content["@context"] == "https://w3id.org/ro/crate/1.1/context"
    entities = {entity["@id"]: entity for entity in content["@graph"]}
    assert len(entities) == len(content["@graph"])
    for name, entity in entities.items():
        assert entity.get("@type") and (entity.get("name") or name == "ro-crate-metadata.json"), name
        for target in references(entity):
            outside = target.startswith("https:") and target not in entities
            assert target in entities or outside, f"{name} refers to {target}, which is not there"
    descriptor, root = entities["ro-crate-metadata.json"], entities["./"]
    assert descriptor["about"] == {"@id": "./"}
    assert {"@id": "https://w3id.org/ro/crate/1.1"} in descriptor["conformsTo"]
    assert datetime.fromisoformat(root["datePublished"]) and root["description"]
    assert "license" in root and entities[root["license"]["@id"]]["name"] == "Apache-2.0"
    profiles = {profile["@id"] for profile in root["conformsTo"]}
    assert {url.rpartition("/")[0] for url in profiles} == {
        "https://w3id.org/ro/wfrun/process",
        "https://w3id.org/ro/wfrun/workflow",
        "https://w3id.org/workflowhub/workflow-ro-crate",
    }
    assert all(entities[url]["version"] == url.rpartition("/")[2] for url in profiles)
    workflow = entities[root["mainEntity"]["@id"]]
    assert set(workflow["@type"]) == {"File", "SoftwareSourceCode", "ComputationalWorkflow"}
    assert entities[workflow["programmingLanguage"]["@id"]]["@type"] == "ComputerLanguage"
    action = entities[root["mentions"]["@id"]]
    assert action["@type"] == "CreateAction" and action["instrument"] == {"@id": workflow["@id"]}
    assert datetime.fromisoformat(action["endTime"]) and action["object"] and action["result"]
    parts = {part["@id"] for part in root["hasPart"]}
    for name, entity in entities.items():
        if "File" in entity["@type"]:
            assert name in parts and entity["encodingFormat"] and (tmp_path / "crate" / name).is_file(), name


def references(value: object) -> list[str]:
    """The identifiers that an entity refers to."""
    if isinstance(value, list):
        return [target for item in value for target in references(item)]
    if isinstance(value, dict) and set(value) == {"@id"}:
        return [value["@id"]]
    return (
        [target for item in value.values() for target in references(item)] if isinstance(value, dict) else []
    )
