"""A run's transcript: the fine-tuned model in kilobytes, which replays to the bit, and from which a killed run goes on."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dpzero
from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.plan import sweep
from dpzero.privacy.ledger_lines import count_releases
from dpzero.run import checkpoint, record_file
from dpzero.run.replay import replay_record
from dpzero.run.run import Run, run_cell
from dpzero.zeroth_order import transcript
from dpzero.zeroth_order.model_requirements import trainable
from dpzero.zeroth_order.transcript import Transcript
from tests.run.stopping import before_each_step, interrupt_at

OTHERS = {"dp_aggzo": {"directions": 3}, "dp_zoso": {}}  # not in the sweep `smoke`
STEPS, SLOW = 20, pytest.mark.slow
KILLED_OF = 200  # steps, at some place well before the last


def quiet(line: str) -> None: ...


@pytest.fixture
def cell(smoke, cache) -> Callable[..., dict]:
    """cell(method, **settings), of 20 steps."""

    def make(method: str, **settings: object) -> dict:
        if method not in OTHERS:
            planned = smoke(method)
        else:
            planned = smoke("dpzero") | {"method": method}
            del planned["use"], planned["title"]
            planned["settings"] |= OTHERS[method]
        planned["settings"] |= settings
        return sweep.complete(planned)

    return make


@pytest.fixture(scope="module")
def one(_smoke, cache, tmp_path_factory) -> Path:
    """The record of a MeZO run, with its transcript. Not to be changed: see `copy`."""
    out = tmp_path_factory.mktemp("one") / "seed-0.json"
    planned = _smoke["toy/tiny-encoder/mezo/eps-inf/seed-0"]
    run_cell(planned | {"settings": planned["settings"] | {"steps": 5, "tune": "bias"}}, out, quiet, "cpu")
    return out


@pytest.fixture
def copy(one, tmp_path) -> Path:
    for file in (one, one.with_suffix(".transcript")):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / one.name


def ran(cell: dict, out: Path, log: Callable[[str], object] = quiet) -> dict:
    run_cell(cell, out, log, "cpu")
    return json.loads(out.read_text())


def of_another_seed(file: Path) -> bytes:
    """The same rows below another first line, and whole."""
    (header, scalars, rates), other = transcript.read(file), file.with_name("other")
    header["law"]["seed"] = 1
    writer = Transcript(other, header)
    for row in zip(scalars, rates, strict=True):
        writer.append(*row)
    writer.close()
    return other.read_bytes()


def repeatable(record: dict) -> dict:
    """What two runs of a cell must agree in."""
    curve = [{k: v for k, v in point.items() if k != "train_seconds"} for point in record["curve"]]
    said = {k: v for k, v in (record["transcript"] or {}).items() if k != "file"}
    return {"metrics": record["metrics"], "privacy": record["privacy"], "curve": curve, "transcript": said}


# --- replay


@pytest.mark.parametrize(
    "method, noise_key",
    [
        *(("dpzero", "published"), ("dpzero", "secret"), ("mezo", None), ("dp_zoso", "published")),
        *(pytest.param(m, "published", marks=SLOW) for m in ("dp_zo_laplace", "dp_aggzo")),
        *(pytest.param(m, "secret", marks=SLOW) for m in ("dp_zo_laplace", "dp_aggzo", "dp_zoso")),
    ],
)
def test_a_run_replays_to_the_bit(cell, tmp_path, method, noise_key):
    out = tmp_path / "seed-0.json"
    record = ran(cell(method, **({"noise_key": noise_key} if noise_key else {})), out)
    said, file = record["transcript"], tmp_path / "seed-0.transcript"
    assert said["file"] == file.name and said["steps"] == STEPS and said["law"] in file.read_text("latin-1")
    rows = file.stat().st_size - len(file.read_bytes().split(b"\n")[0]) - 1
    assert rows == STEPS * (8 * (3 if method == "dp_aggzo" else 1) + 12)
    answer = replay_record(out, device="cpu")
    expected = {"match": True, "steps": STEPS, "weights_sha256": said["weights_sha256"], "device": "cpu"}
    assert answer == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"tune": "full", "direction_law": "rademacher"},
        {"tune": "lora", "perturb": "on_read"},
        {"tune": "side", "compression": "pool"},
        {"tune": "reversible", "coupling": 0.25},
        {"tune": "top"},
    ],
)
def test_so_does_one_of_another_part_and_engine(cell, tmp_path, settings):
    ran(cell("dpzero", **settings) | {"model": "tiny-causal"}, tmp_path / "a.json")
    assert replay_record(tmp_path / "a.json", device="cpu")["match"] is True


def test_the_tensors_that_it_saves_are_the_model_that_was_scored(one, tmp_path):
    weights = tmp_path / "deep" / "w.safetensors"
    assert replay_record(one, weights, "cpu")["match"] is True
    record, task = json.loads(one.read_text()), tasks.load("toy")
    model = text_classifier.load("tiny-encoder", task, "bias")
    tensors = load_file(weights)
    assert set(tensors) == {name for name, p in model.named_parameters() if p.requires_grad}
    model.load_state_dict(tensors, strict=False)
    assert transcript.digest(trainable(model.parameters())) == record["transcript"]["weights_sha256"]
    scored = encoding.encode(tasks.load("toy"), "tiny-encoder", 16)["test"]
    assert losses.CrossEntropy(2048).evaluate(model, scored)["loss"] == record["metrics"]["loss"]


def test_from_python_it_takes_the_base_models_tensors(one):
    model = text_classifier.load("tiny-encoder", tasks.load("toy"), "bias")
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert dpzero.replay(parameters, one.with_suffix(".transcript")) == 5
    said = json.loads(one.read_text())["transcript"]
    assert transcript.digest(parameters) == said["weights_sha256"]


def test_other_weights_are_no_match_and_are_not_saved(copy, tmp_path):
    record = json.loads(copy.read_text())
    record["transcript"]["weights_sha256"] = "0" * 64
    copy.write_text(json.dumps(record))
    answer = replay_record(copy, tmp_path / "w.safetensors", "cpu")
    assert answer["match"] is False and answer["weights_sha256"] != "0" * 64
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("transcript.sha256", "0" * 64, r"\(transcript.sha256\)"),
        ("transcript.steps", 4, r"\(transcript.steps\)"),
        ("transcript.law", "gaussian", r"\(transcript.law\)"),
        ("transcript.weights_sha256", None, "ended with status ok, so that it has no digest"),
        (
            "transcript.file",
            "../../seed-1.transcript",
            "cannot read .*/seed-1.transcript .*beside its record",
        ),
        (
            "transcript",
            None,
            "has no transcript: give a record of DPZero, .*MeZO.*, or run",
        ),
        ("transcript.sha256", ..., "has no transcript"),
        ("cell.seed", 1, r"\(cell's seed\)"),
        ("cell.settings.learning_rate", 1e-4, r"\(cell's learning_rate\)"),
        ("cell.settings.smoothing", 1e-4, r"\(cell's smoothing\)"),
        ("cell.settings.tune", "full", "these tensors are not those .* started from"),
        ("cell.model", "tiny-causal", "the model tiny-causal here is not the one"),
        ("cell.model", "tiny", "unknown model 'tiny'"),
        ("cell.task", "toi", "unknown task 'toi'"),
        ("cell", [], "is no record"),
        ("provenance.model.sha256", "0" * 64, "the model tiny-encoder here is not the one"),
    ],
)
def test_an_altered_record_is_refused(copy, path, value, words):
    record = json.loads(copy.read_text())
    *sections, key = path.split(".")
    inside = record
    for section in sections:
        inside = inside[section]
    if value is ...:
        del inside[key]
    else:
        inside[key] = value
    copy.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=words) as refused:
        replay_record(copy, device="cpu")
    assert "\n" not in str(refused.value)


def test_an_altered_transcript_is_refused(copy):
    file = copy.with_suffix(".transcript")
    whole = file.read_bytes()
    for changed, words in (
        (whole[:-28] + bytes([whole[-28] ^ 1]) + whole[-27:], "damaged in the row of step 3"),
        (whole[:-20], "transcript.sha256, transcript.steps"),
        (whole.replace(b'"seed": 0', b'"seed": 1'), "damaged in its first line or in the row of step 0"),
        (of_another_seed(file), "transcript.sha256, cell's seed"),
        (b"", "is no transcript"),
    ):
        file.write_bytes(changed)
        with pytest.raises(UsageError, match=words):
            replay_record(copy, device="cpu")
    file.unlink()
    with pytest.raises(UsageError, match="put the transcript beside its record"):
        replay_record(copy, device="cpu")


@pytest.mark.parametrize("text", [None, "{", "[1]", '{"cell": {}}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match="cannot read" if text is None else "is no record"):
        replay_record(tmp_path / "a.json")


# --- a run that was killed


def killed(cell: dict, out: Path, monkeypatch, row: int, when: str, seconds: float = 15) -> None:
    """The process dies `before` or `after` it appends the row of step `row`, whose release is in the ledger."""
    whole, rows = Transcript.append, []

    def append(self, scalars, rates):
        rows.append(scalars)
        if len(rows) == row + 1 and when == "before":
            raise KeyboardInterrupt
        whole(self, scalars, rates)
        if len(rows) == row + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", seconds)
        patch.setattr(Transcript, "append", append)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, out, quiet, "cpu")


def stopped_at(cell: dict, out: Path, monkeypatch, step: int) -> None:
    """The process dies between two steps, with a state of the last one."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "SECONDS", 0)
        interrupt_at(patch, step)
        run_cell(cell, out, quiet, "cpu")


@pytest.mark.parametrize("noise_key", [pytest.param("published", marks=SLOW), "secret"])
def test_after_sigkill_it_goes_on_to_the_same_bits_and_counts_each_step_once(cell, tmp_path, noise_key):
    mine, out = cell("dpzero", noise_key=noise_key, steps=KILLED_OF), tmp_path / "a.json"
    kept = checkpoint.folder(out) / "transcript"
    process = multiprocessing.get_context("fork").Process(target=run_cell, args=(mine, out, quiet, "cpu"))
    process.start()
    while not kept.exists() or kept.stat().st_size < 1500:
        assert process.is_alive()
        time.sleep(0.001)
    process.kill()
    process.join()
    before = transcript.read(kept).scalars
    released = count_releases(checkpoint.folder(out) / "ledger")
    assert 0 <= released - len(before) <= 1  # a release that the ledger had and the transcript had not yet
    lines = []
    record = ran(mine, out, lines.append)
    assert any(f"resumed at step {len(before)} of {KILLED_OF}" in line for line in lines)
    after = transcript.read(out.with_suffix(".transcript")).scalars
    lost = (released - len(before)) * (noise_key == "secret")  # spent, and a step less
    assert len(after) == KILLED_OF - lost and (after[: len(before)] == before).all()
    assert record["privacy"]["steps"] == KILLED_OF
    assert replay_record(out, device="cpu")["match"] is True
    if noise_key == "published":
        assert record["transcript"]["sha256"] == ran(mine, tmp_path / "b.json")["transcript"]["sha256"]


@pytest.mark.parametrize("seconds", [0, 15])  # between states: one a step, or none
@pytest.mark.parametrize("when, again", [("after", 0), ("before", 1)])
def test_a_row_is_followed_whether_or_not_the_weights_had_moved(
    cell, tmp_path, monkeypatch, when, again, seconds
):
    mine, out, lines = cell("dpzero", noise_key="secret"), tmp_path / "a.json", []
    killed(mine, out, monkeypatch, 12, when, seconds)
    record = ran(mine, out, lines.append)
    assert any(f"resumed at step {13 - again} of 20" in line for line in lines)
    assert record["transcript"]["steps"] == STEPS - again  # the release that was lost is spent
    assert record["privacy"]["steps"] == STEPS and record["privacy"]["epsilon_spent"] <= 2
    assert replay_record(out, device="cpu")["match"] is True


@pytest.mark.parametrize(
    "method, row",
    [
        *(("mezo", row) for row in (0, 4, 12, 19)),
        *(("dp_aggzo", 12), ("dp_zoso", 12)),
        *(pytest.param(m, row, marks=SLOW) for m in ("dp_aggzo", "dp_zoso") for row in (0, 4, 19)),
    ],
)
def test_a_benchmark_that_was_killed_leaves_the_same_record(cell, tmp_path, monkeypatch, method, row):
    mine = cell(method)
    whole = repeatable(ran(mine, tmp_path / "whole.json"))
    killed(mine, tmp_path / "a.json", monkeypatch, row, "after")
    resumed = repeatable(ran(mine, tmp_path / "a.json"))
    points = {point["step"]: point for point in whole["curve"]}
    if row + 1 in points:  # died between a step and its point of the curve: the loss of its batch is nowhere
        ours = next(point for point in resumed["curve"] if point["step"] == row + 1)
        assert ours.pop("train_loss") is None and points[row + 1].pop("train_loss") > 0
    assert resumed == whole


def test_steps_that_were_taken_from_a_transcript_are_not_timed(cell, tmp_path, monkeypatch):
    mine = cell("mezo")
    killed(mine, tmp_path / "a.json", monkeypatch, 18, "after")
    timed = []
    before_each_step(monkeypatch, lambda _, step: timed.append(step))
    spent = ran(mine, tmp_path / "a.json")["time"]
    assert len(timed) == 1
    # ten until the last point of the curve, one now
    assert round(spent["steps_per_second"] * spent["train_seconds"]) == 10 + 1


@pytest.mark.parametrize(
    "damage, words, kept",
    [
        (lambda data: data[: -20 * 6 + 5], r"has 7 of the 13 steps taken.* 7 steps are taken again", 7),
        (lambda data: data[:-25] + b"\0" * 25, r"damaged in the row of step 11.* 0 steps are taken", 0),
        (lambda data: data[:20], r"is no transcript.* 0 steps are taken", 0),
        (None, r"is of another run.* 0 steps", 0),
    ],
)
@pytest.mark.parametrize("noise_key", [pytest.param("published", marks=SLOW), "secret"])
def test_a_lost_or_damaged_transcript_sends_the_run_back_and_the_ledger_counts_all(
    cell, tmp_path, monkeypatch, noise_key, damage, words, kept
):
    mine, out, lines = cell("dpzero", noise_key=noise_key), tmp_path / "a.json", []
    stopped_at(mine, out, monkeypatch, 13)
    path = checkpoint.folder(out) / "transcript"
    path.write_bytes(damage(path.read_bytes()) if damage else of_another_seed(path))
    record = ran(mine, out, lines.append)
    said = [line for line in lines if "transcript" in line]
    assert len(said) == 1 and re.search(words, said[0]), lines
    left = STEPS if noise_key == "published" else kept + STEPS - 13  # what was released is spent
    assert record["privacy"]["steps"] == STEPS and record["transcript"]["steps"] == left
    assert replay_record(out, device="cpu")["match"] is True
    if noise_key == "published":
        assert repeatable(record) == repeatable(ran(mine, tmp_path / "whole.json"))


def test_a_state_without_transcript_goes_on_without_one_and_releases_nothing_again(
    cell, tmp_path, monkeypatch
):
    mine, out = cell("dpzero", noise_key="secret"), tmp_path / "a.json"
    killed(mine, out, monkeypatch, 12, "after", seconds=0)
    (checkpoint.folder(out) / "transcript").unlink()
    record = ran(mine, out)
    assert record["privacy"]["steps"] == STEPS and record["transcript"] is None


# --- beside the record


def test_the_transcript_of_an_older_record_does_not_survive(cell, tmp_path):
    out, beside = tmp_path / "a.json", tmp_path / "a.transcript"
    first = ran(cell("mezo"), out)["transcript"]["sha256"]
    second = ran(cell("mezo", learning_rate=2e-3), out)
    assert second["transcript"]["sha256"] != first and replay_record(out, device="cpu")["match"] is True
    assert ran(cell("adamw"), out)["transcript"] is None and not beside.exists()


@pytest.mark.parametrize("fatal", ["a.transcript", "a.json"])
def test_one_that_died_as_it_wrote_its_record_repeats_no_release(cell, tmp_path, monkeypatch, fatal):
    mine, out, whole = cell("dpzero", noise_key="secret"), tmp_path / "a.json", record_file.write_whole

    def write_whole(path, content):
        if path.name == fatal:
            raise KeyboardInterrupt
        whole(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(record_file, "write_whole", write_whole)
        ran(mine, out)
    record = ran(mine, out)
    assert record["privacy"]["steps"] == STEPS and replay_record(out, device="cpu")["match"] is True


def test_a_run_that_ends_out_of_memory_keeps_what_it_released(cell, tmp_path, monkeypatch):
    whole, calls, out = text_classifier.Classifier.forward, [], tmp_path / "a.json"

    def forward(self, *arguments):
        calls.append(None)
        if len(calls) > 30:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(text_classifier.Classifier, "forward", forward)
        record = ran(cell("dpzero", noise_key="secret"), out)
    assert record["status"] == "oom" and record["transcript"]["weights_sha256"] is None
    assert 0 < record["transcript"]["steps"] == record["privacy"]["steps"] < STEPS
    with pytest.raises(UsageError, match="ended with status oom, so that it has no digest"):
        replay_record(out)


def test_so_does_one_that_diverges(cell, tmp_path):
    record = ran(cell("mezo", learning_rate=1e30), tmp_path / "a.json")
    assert record["status"] == "diverged" and record["transcript"]["weights_sha256"] is None
    scalars = transcript.read(tmp_path / "a.transcript").scalars
    assert len(scalars) == record["transcript"]["steps"] > 0


def recounted(ledger: Path, last: int) -> None:
    """The sums of the last releases were others: a machine was at work that rounds in another way."""
    lines = ledger.read_text().splitlines()
    lines[-last:] = [line[:-16] + 16 * "0" for line in lines[-last:]]
    ledger.write_text("\n".join(lines) + "\n")


def test_a_benchmark_that_releases_another_sum_of_a_batch_spends_a_step_more(cell, tmp_path, monkeypatch):
    mine, out = cell("dpzero"), tmp_path / "a.json"
    killed(mine, out, monkeypatch, 12, "before")
    recounted(checkpoint.folder(out) / "ledger", 1)
    record = ran(mine, out)
    assert record["privacy"]["steps"] == STEPS == record["transcript"]["steps"] + 1
    assert replay_record(out, device="cpu")["match"] is True


def test_and_ends_where_none_is_left(cell, tmp_path, monkeypatch):
    mine, out = cell("dp_sgd"), tmp_path / "a.json"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "_check_finite", lambda run: run.method.steps_taken == STEPS and interrupt())
        run_cell(mine, out, quiet, "cpu")
    recounted(checkpoint.folder(out) / "ledger", STEPS)
    (checkpoint.folder(out) / "state.pt").unlink(missing_ok=True)
    record = ran(mine, out)
    assert record["status"] == "ok" and record["privacy"]["steps"] == STEPS


def interrupt() -> None:
    raise KeyboardInterrupt
