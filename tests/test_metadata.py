"""The files by which archives and catalogues know the project say what the project is."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
ZENODO = json.loads((ROOT / ".zenodo.json").read_text("utf-8"))


def test_version_licence_title_and_authors_are_the_same_everywhere():
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["license"] == ZENODO["license"] == PROJECT["license"]
    assert CITATION["title"] == ZENODO["title"]
    assert [author["name"] for author in CITATION["authors"]] == [who["name"] for who in ZENODO["creators"]]


def test_both_cite_the_paper():
    (paper,) = CITATION["references"]
    (related,) = ZENODO["related_identifiers"]
    assert paper["url"].rsplit("/", 1)[1] == related["identifier"].removeprefix("arXiv:") == "2310.09639"


def test_the_workflow_catalogue_knows_that_there_is_a_report():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text("utf-8"))["usage"]
    assert usage["report"] is True and "report: " in (ROOT / "Snakefile").read_text("utf-8")
