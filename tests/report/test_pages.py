"""The pages of Snakemake's report, made of committed tables and figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpzero.errors import UsageError
from dpzero.report import figure_names, page_sources
from dpzero.report.pages import write_pages
from tests.browser import column, opened

ROOT = Path(__file__).resolve().parents[2]
RUNS = ["r8/minilm/dpzero/eps-2/seed-0"]
ASKED = {"What is asked": "whether <b> & \"quotes' stay {{ what }} {% they %} are"}


def write(kind: str, sweep: str, out: Path, asked: dict[str, str] = ASKED) -> dict[str, str]:
    """name -> text of the pages of a committed sweep."""
    figures = [ROOT / "figures" / sweep / f"{name}.png" for name in figure_names(kind)]
    tables = ROOT / "results" / sweep / "tables"
    paths = write_pages(kind, sweep, RUNS, asked, tables, figures, out)
    return {path.name: path.read_text("utf-8") for path in paths}


@pytest.mark.parametrize(
    "kind, sweep", [("language", "quick"), ("quadratic", "quadratic"), ("guarantees", "guarantees")]
)
def test_each_table_and_document_of_a_sweep_has_a_page_of_its_rows(kind, sweep, tmp_path):
    pages = write(kind, sweep, tmp_path)
    sources = page_sources(kind, RUNS)
    assert list(pages) == ["landing.rst", *(f"{name}.html" for name in sources)]
    for name, file in sources.items():
        if file.endswith(".md"):
            text = (ROOT / "results" / sweep / "tables" / file).read_text("utf-8")
            rows = sum(line.startswith("|") for line in text.splitlines())
            assert pages[f"{name}.html"].count("<tr>") == max(0, rows - 1), name  # but the line of dashes
    assert "provenance.html" in pages and ("runs.html" in pages) == (kind == "language")


def test_a_page_needs_no_network(tmp_path):
    for name, text in write("language", "quick", tmp_path).items():
        assert not re.search(r"(src|href)=[\"'](?!data:|javascript:)", text), name


def test_the_landing_page_is_escaped_twice_and_says_what_was_asked(tmp_path):
    text = write("language", "quick", tmp_path)["landing.rst"]
    assert text.startswith("{% raw %}") and text.rstrip().endswith("{% endraw %}")
    assert "whether &lt;b&gt; &amp; &#34;quotes&#39; stay {{ what }}" in text
    assert max(map(len, text.splitlines())) < 10_000  # docutils takes no longer line


def test_equal_tables_give_equal_pages(tmp_path):
    assert write("language", "quick", tmp_path) == write("language", "quick", tmp_path)


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"there is no accuracy\.md in .*: run `python -m dpzero tables`"):
        write_pages("language", "quick", RUNS, {}, tmp_path, [], tmp_path / "pages")


@pytest.mark.slow
def test_a_click_on_a_heading_sorts_numbers_as_numbers_and_a_second_one_the_other_way(tmp_path):
    write("language", "quick", tmp_path)
    with opened(tmp_path / "accuracy.html") as (page, errors):
        heads = page.locator("th button").all_inner_texts()
        accuracy = 1 + next(i for i, text in enumerate(heads) if text.startswith("accuracy"))
        before = column(page, accuracy)
        page.locator(f"th:nth-child({accuracy}) button").click()
        rising = column(page, accuracy)
        page.locator(f"th:nth-child({accuracy}) button").click()
        falling = column(page, accuracy)
        epsilon = 1 + heads.index("ε")
        page.locator(f"th:nth-child({epsilon}) button").click()
        epsilons = column(page, epsilon)
        assert page.locator("th[aria-sort]").count() == 1 and errors == []
    numbers = [float(text.split()[0]) for text in rising]
    assert sorted(before) == sorted(rising) and before != rising
    assert numbers == sorted(numbers) and [float(t.split()[0]) for t in falling] == numbers[::-1]
    assert epsilons == sorted(epsilons, key=lambda text: float(text.replace("∞", "inf")))
