"""What the documents show is what the code does."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dpzero import DPZero, include, replay
from dpzero.files import is_try
from dpzero.language.data import tasks
from dpzero.plan import registry, sweep
from dpzero.privacy import Budget, RunKey
from dpzero.report import overview
from dpzero.zeroth_order import transcript
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


def write_causal_model(folder: Path) -> None:
    """GPT-2 of one layer in bfloat16, as models of the hub are stored, with a tokenizer that has no padding."""
    words = {
        word: number
        for number, word in enumerate(["<end>", "<unknown>", *["the", "film", "was", "dull", "great"]])
    }
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).bfloat16().save_pretrained(folder)


def test_the_library_example_trains_resumes_saves_and_says_its_epsilon(tmp_path, monkeypatch, capsys):
    """As it stands, but for the model's name and the number of steps. A killed run goes on from its ledger."""
    (example,) = blocks("README.md", "python")
    assert len(example.splitlines()) < 25
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_causal_model(tmp_path / "model")
    for split, count in (("train", 90), ("test", 5)):
        texts = [f"the film was {('dull', 'great')[i % 2]}" + " film" * (i % 3) for i in range(count)]
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{split}.jsonl").write_text(rows, "utf-8")
    script = example.replace("HuggingFaceTB/SmolLM2-135M", str(tmp_path / "model"))
    script = script.replace('"batch_size": 64, "steps": 1000', '"batch_size": 6, "steps": 12')
    taken, step = [], DPZero.step

    def interrupted(self, batch):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(step(self, batch))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DPZero, "step", interrupted)
        names: dict = {}
        exec(script, names)
    names["budget"].close()
    names = {}
    exec(script, names)
    said = capsys.readouterr().out
    assert re.search(
        r"test loss \d+\.\d+\nepsilon (1\.9\d*|2) of 2 spent at delta 1e-05, in 12 of 12 steps", said
    )
    assert "valid release: yes" in said
    steps = transcript.read(tmp_path / "run.transcript")
    assert steps.scalars[:5, 0].tolist() == taken and len(steps.scalars) == len(names["budget"].ledger) == 12
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").state_dict()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="float32")
    assert not all(torch.equal(tuned[key], value) for key, value in base.state_dict().items())
    replay(base.parameters(), tmp_path / "run.transcript")
    assert all(torch.equal(tuned[key], value) for key, value in base.state_dict().items())


def test_the_example_method_is_found_and_takes_a_private_step(data, tmp_path, monkeypatch):
    code, _ = blocks("baselines/README.md", "python")
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
    for batch in budget.loader(data, collate_fn=list):
        method.step(batch)
    assert method.steps_taken == len(budget.ledger) == 3


def test_the_example_with_users_trains_and_protects_each_of_them(tmp_path, monkeypatch, capsys):
    """As it stands, but for the model's name and the sizes."""
    _, example = blocks("baselines/README.md", "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    write_model(tmp_path / "model")
    rows = "".join(f"user {i % 12},{'a good film' if i % 2 else 'a bad film'},{i % 2}\n" for i in range(50))
    (tmp_path / "reviews.csv").write_text("user,text,label\n" + rows, "utf-8")
    script = example.replace("FacebookAI/roberta-base", str(tmp_path / "model"))
    names: dict = {}
    exec(script.replace('"batch_size": 32, "steps": 1000', '"batch_size": 3, "steps": 8'), names)
    said, budget = capsys.readouterr().out, names["budget"]
    assert "in 8 of 8 steps\nprotects: each user of 12, adjacency add_remove" in said
    assert "valid release: yes" in said and len(budget.ledger) == names["optimizer"].steps_taken == 8


def test_the_example_stanzas_are_ones_that_a_sweep_takes():
    *_, others = blocks("baselines/README.md", "yaml")
    place = {"task": "r8", "model": "smollm2-135m", "epsilon": "2", "seed": 0}
    for name, stanza in yaml.safe_load(others).items():
        named = {key: stanza.pop(key) for key in ("use", "title")}
        cell = sweep.complete(place | {"method": name, **named, "settings": {"steps": 9} | stanza})
        assert cell["epsilon"] == "inf" and stanza.items() <= cell["settings"].items()


def test_the_example_folder_can_be_planned_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.setenv(include.VARIABLE, "")
    code = [*blocks("baselines/README.md", "yaml")[:-1], blocks("baselines/README.md", "python")[0]]
    names = [block.splitlines()[0].removeprefix("# my/") for block in code]
    assert names == ["sweep.yaml", "tasks.yaml", "models.yaml", "sign_zo.py"]
    for name, block in zip(names, code, strict=True):
        (tmp_path / name).write_text(block, "utf-8")
    rows = "".join(f"text {i},{1 + 4 * (i % 2)}\n" for i in range(60))
    (tmp_path / "rows.csv").write_text("review,stars\n" + rows, "utf-8")
    write_model(tmp_path / "model")
    cells = sweep.load(str(tmp_path / "sweep.yaml"))
    assert sum(not is_try(run) for run in cells) == 1 + 3 * 2 * 3
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
    """Nine KiB, and sentences of 25 words in the mean."""
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
