"""What the documents show is what the code does."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch
import yaml

from dpzero import include
from dpzero.files import is_try
from dpzero.language.data import tasks
from dpzero.plan import registry, sweep
from dpzero.privacy import Budget, RunKey
from dpzero.report import overview
from tests.own_model import write_model

ROOT = Path(__file__).parents[1]
READMES = [
    ROOT / "README.md",
    *(path for room in ("dpzero", "baselines", "results") for path in (ROOT / room).rglob("README.md")),
]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def squared_error(model, batch):
    x, y = zip(*batch, strict=True)
    return (model(torch.stack(x)).squeeze(1) - torch.stack(y)).square()


@pytest.fixture
def data():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    return list(zip(x, x.sum(1), strict=True))


def test_the_library_example_runs_and_spends_what_it_was_given(data, capsys):
    (example,) = blocks("README.md", "python")
    names = {"model": torch.nn.Linear(3, 1), "loss": squared_error, "data": data}
    exec(example.replace("steps=1000", "steps=20"), names)
    assert 1.9 < float(capsys.readouterr().out) <= 2


def test_the_example_method_is_found_and_takes_a_private_step(data, tmp_path, monkeypatch):
    (code,) = blocks("baselines/README.md", "python")
    file = tmp_path / "sign_zo.py"
    file.write_text(code)
    card = registry._read("sign_zo", file)
    assert (card.title, card.private, card.order) == ("Sign-ZO", True, 0)
    assert card.required == {"learning_rate", "clip"}
    names: dict = {}
    exec(code, names)
    budget = Budget.calibrated(
        epsilon=2, delta=1e-5, dataset_size=200, batch_size=8, steps=3, key=RunKey.published(0)
    )
    method = names[card.class_name](
        torch.nn.Linear(3, 1), squared_error, budget, learning_rate=1e-3, clip=1.0
    )
    for indices in budget.batches():
        method.step([data[i] for i in indices])
    assert method.steps_taken == len(budget.ledger) == 3


def test_the_example_stanzas_are_ones_that_a_sweep_takes():
    *_, others = blocks("baselines/README.md", "yaml")
    place = {"task": "r8", "model": "smollm2-135m", "epsilon": "2", "seed": 0}
    for name, stanza in yaml.safe_load(others).items():
        named = {key: stanza.pop(key) for key in ("use", "title")}
        cell = sweep.complete(place | {"method": name, **named, "settings": {"steps": 9} | stanza})
        assert cell["epsilon"] == "inf" and stanza.items() <= cell["settings"].items()


def test_the_example_folder_can_be_planned_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.setenv(include.VARIABLE, "")
    code = [*blocks("baselines/README.md", "yaml")[:-1], *blocks("baselines/README.md", "python")]
    names = [block.splitlines()[0].removeprefix("# my/") for block in code]
    assert names == ["sweep.yaml", "tasks.yaml", "models.yaml", "sign_zo.py"]
    for name, block in zip(names, code, strict=True):
        (tmp_path / name).write_text(block, "utf-8")
    rows = "".join(f"text {i},{1 + 4 * (i % 2)}\n" for i in range(60))
    (tmp_path / "rows.csv").write_text("review,stars\n" + rows, "utf-8")
    write_model(tmp_path / "model")
    cells = sweep.load(str(tmp_path / "sweep.yaml"))
    assert sum(not is_try(run) for run in cells) == 1 + 2 * 2 * 3
    assert sum(is_try(run) for run in cells) == 2 * 2 * 2
    assert tasks.load("reviews").splits["test"]


def sentences(text: str) -> list[str]:
    """The sentences of a Markdown text, without code, tables, headings, comments and the targets of links."""
    text = re.sub(r"```.*?```|<!--.*?-->", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"^(#.*|\|.*|!\[.*)$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    paragraphs = re.split(r"\n\s*\n|^\* ", text, flags=re.MULTILINE)
    return [
        sentence
        for paragraph in paragraphs
        for sentence in re.split(r"(?<=[.!?])\s+(?=\W*[A-Z])", paragraph.strip())
    ]


def words(sentence: str) -> int:
    return sum(any(map(str.isalnum, word)) for word in sentence.split())


def test_sentences_are_counted():
    text = "# Title\n\nOne two. Three [four](five.md)\nsix!\n\n* Seven.\n* Eight 9.5 ten\n\n```\nno. no.\n```\n| no |\n"
    assert [words(sentence) for sentence in sentences(text) if sentence] == [2, 3, 1, 3]


def test_the_readme_is_short():
    """Nine kilobytes, and sentences of 25 words in the mean."""
    text = (ROOT / "README.md").read_text()
    assert len(text.encode()) <= 9_000
    lengths = [n for n in map(words, sentences(text)) if n]
    assert len(lengths) > 40 and sum(lengths) / len(lengths) <= 25 and max(lengths) <= 60


def test_the_results_are_those_of_the_tables():
    assert overview.update(ROOT, check=True) == []


def test_no_committed_run_is_called_a_release():
    """As results/README.md says of all of them."""
    for path in (ROOT / "results").glob("*/tables/privacy.csv"):
        with path.open(encoding="utf-8", newline="") as stream:
            assert {row["valid_release"] for row in csv.DictReader(stream)} <= {"no"}, path


@pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_sweep_cell_and_file_that_a_readme_names_exists(path):
    text = path.read_text()
    named = set(re.findall(r"(?:sweep=|--sweep )([\w-]+)(?![\w/-])", text))
    assert named <= {*sweep.names(), "NAME"}
    for name, cell in re.findall(r"--sweep ([\w-]+) --cell (\S+)", text):
        assert cell in sweep.load(name)
    for link in re.findall(r"\]\(((?!http)[^)#]+)[^)]*\)", text):
        assert (path.parent / link).exists(), link


def test_the_readme_has_the_two_commands_and_ci_runs_the_second():
    text = (ROOT / "README.md").read_text()
    install = "pip install -c constraints.txt -e '.[test]'"
    assert f"{install} && snakemake --cores all" in text
    assert f"{install} && pytest" in text
    script = (ROOT / ".ci" / "run").read_text()
    assert install.removeprefix("pip install ") in script
    assert re.search(r"^pytest$", script, flags=re.MULTILINE)
