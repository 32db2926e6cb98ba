"""What a private run with a secret key leaves behind: nothing that epsilon does not cover. Real runs on the toy task."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from dpzero.errors import UsageError
from dpzero.language.data import tasks
from dpzero.language.models import encoding, losses, text_classifier
from dpzero.plan import sweep
from dpzero.privacy import Budget, RunKey, ledger
from dpzero.report.writing import write_figures, write_tables
from dpzero.run import checkpoint, measurements, record_file
from dpzero.run.checkpoint import Checkpoint
from dpzero.run.run import Run, run_cell
from dpzero.run.setup import describe_ranks
from dpzero.zeroth_order import TwoPoint, transcript
from dpzero.zeroth_order.distributed import Ranks
from tests.run.stopping import interrupt_at

METHODS = ["dpzero", "dp_zo_laplace", "dp_sgd", "dp_adam", "dp_aggzo", "dp_zoso", "dp_votezo"]
OTHERS = {  # not in the sweep `smoke`: what they need beside DPZero's settings
    "dp_aggzo": {"directions": 2},
    "dp_zoso": {"stages": 2},
    "dp_votezo": {"directions": 2},
}
SLOW = pytest.mark.slow
RATE = {"batch_size": 60}  # of 240 examples: the size of a batch is seldom that of a setting


@pytest.fixture
def private(smoke, cache) -> Callable[..., dict]:
    """private(method, **settings) -> a cell whose run may be published although its data are private."""

    def cell(method: str, **settings: object) -> dict:
        settings = {"noise_key": "secret", **RATE, **settings}
        if method not in OTHERS:
            return smoke(method, **settings)
        planned = smoke("dpzero", **settings)
        planned["settings"] |= OTHERS[method]
        return sweep.complete(
            {key: planned[key] for key in planned if key not in ("use", "title")} | {"method": method}
        )

    return cell


def left_behind(cell: dict, folder: Path, monkeypatch) -> dict:
    """Runs the cell; everything that it writes and says, its checkpoint of each step included."""
    lines, states = [], []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", 0)
        patch.setattr(Checkpoint, "remove", lambda self: None)
        patch.setattr(Checkpoint, "save", lambda self, state: states.append(state))
        run_cell(cell, folder / "record.json", lines.append, "cpu")
    folder_of_it = folder / "record.checkpoint"
    return {
        "record": json.loads((folder / "record.json").read_text()),
        "lines": lines,
        "states": states,
        "files": {
            path.name: path.read_bytes()
            for path in folder_of_it.iterdir()
            if path.is_file() and path.name != "transcript"
        },
        "candidates": {
            path.name: [tensor.numpy().tobytes() for tensor in torch.load(path, weights_only=True)]
            for path in sorted(folder_of_it.glob("candidates/*"))
        },
        "transcript": said_in(folder / "record.transcript"),
    }


def said_in(path: Path) -> dict:
    """A transcript's header and rows; of a method without one nothing."""
    if not path.exists():
        return {}
    header, scalars, rates = transcript.read(path)
    return {"header": header, "scalars": scalars.tolist(), "rates": rates.tolist()}


def numbers(left: dict) -> set[float]:
    """Every number in the record, in what was said and in the files."""
    texts = [*left["lines"], *(file.decode() for file in left["files"].values()), json.dumps(left["record"])]
    texts = " ".join([*texts, json.dumps(left["transcript"])])
    return {float(n) for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])", texts)}


class Watched(NamedTuple):
    """A run that was watched: the un-noised quantities that it saw, and what it released and left behind."""

    cell: dict
    seen: set[float]
    released: list[list[float]]
    left: dict
    record: Path


@pytest.fixture(scope="module")
def _watched_runs() -> dict[tuple, Watched]:
    return {}


@pytest.fixture
def watched_run(private, monkeypatch, tmp_path_factory, _watched_runs) -> Callable[..., Watched]:
    """watched_run(method, **settings): made once for all tests, which leave it as it is."""

    def of(method: str, **settings: object) -> Watched:
        key = (method, *settings.items())
        if key not in _watched_runs:
            cell, folder, released = private(method, **settings), tmp_path_factory.mktemp("watched"), []
            with watched(monkeypatch, released) as seen:
                left = left_behind(cell, folder, monkeypatch)
            _watched_runs[key] = Watched(cell, seen, released, left, folder / "record.json")
        return _watched_runs[key]

    return of


@contextmanager
def watched(monkeypatch, released: list[list[float]] | None = None) -> Iterator[set[float]]:
    """Collects un-noised quantities while runs go on: losses, differences, their sums and means, batch sizes, times.

    And, into `released`, the scalars that are released.
    """
    seen: set[float] = set()

    def after_release(self, *rest) -> None:
        if released is not None:
            released.append(rest[-1] if isinstance(rest[-1], list) else [rest[-1]])

    def note(values: torch.Tensor) -> None:
        exact = values.detach().double().flatten()
        for kind in (exact, exact.float()):
            seen.update([*kind.tolist(), float(kind.sum()), float(kind.mean()), float(kind.norm())])
        seen.update([exact.numel(), float(exact.sum()) / exact.numel() if exact.numel() else 0.0])

    def after_step(run: Run, step: int, batch: encoding.Examples, _: None) -> None:
        times = {run.clock.last_step_seconds, run.clock.train_seconds}
        seen.update(times | {len(batch), run.method.training_loss or 0.0})

    def after_scoring(loss, model: object, scored: encoding.Examples, scores: dict) -> None:
        if len(scored) != 120:  # the test examples, which are public
            seen.update(scores.values())

    def spy(
        owner: type, name: str, before: Callable = lambda *_: None, after: Callable = lambda *_: None
    ) -> None:
        inner = getattr(owner, name)

        def around(self, *arguments):
            before(*arguments)
            answer = inner(self, *arguments)
            after(self, *arguments, answer)
            return answer

        patch.setattr(owner, name, around)

    with monkeypatch.context() as patch:
        spy(losses.CrossEntropy, "__call__", after=lambda _, model, batch, values: note(values))
        for name in ("release", "release_vectors"):
            spy(Budget, name, before=lambda clipped, clip: note(clipped), after=after_release)
        spy(Budget, "release_", before=lambda sums, clip: note(torch.cat([s.flatten() for s in sums])))
        spy(Budget, "choose", before=lambda counts, epsilon: seen.update(map(float, counts.values())))
        spy(losses.CrossEntropy, "evaluate", after=after_scoring)
        spy(Run, "_after_step", after=after_step)
        yield seen


def public_numbers(cell: dict) -> set[float]:
    """Settings, and the small integers: a step's number may be a batch's size by chance."""
    settings = {float(v) for v in cell["settings"].values() if isinstance(v, int | float)}
    return (
        {sign * value for value in settings for sign in (1, -1)} | set(map(float, range(21))) | {240.0, 120.0}
    )


@pytest.mark.parametrize("method", METHODS)
def test_no_number_that_is_left_behind_is_a_private_one(watched_run, method):
    cell, seen, _, left, _ = watched_run(method)
    assert len(seen) > 1000 and len(numbers(left)) > 25
    assert not numbers(left) & (seen - public_numbers(cell))


def test_a_private_choice_leaves_behind_the_step_that_it_chose_alone(private, tmp_path, monkeypatch):
    # of 19 dev examples no share is one of 120 test examples, but for none and all
    cell = private("dp_adam", learning_rate=5e-2, evaluate_every=5, curve_examples=19)
    cell["settings"]["iterate"] = "accounted"
    with watched(monkeypatch) as seen:
        left = left_behind(cell, tmp_path, monkeypatch)
    assert {n / 19 for n in range(1, 19)} & seen and not numbers(left) & (seen - public_numbers(cell))
    assert left["record"]["metrics"]["selected_step"] in (5, 10, 15, 20)
    assert left["record"]["privacy"]["choice"]["epsilon"] == 2
    step = left["record"]["metrics"]["selected_step"]
    entries = [line.split() for line in left["files"]["ledger"].decode().splitlines()]
    ((key_name, *told),) = [words for kind, *words in entries if kind == "choice"]
    assert len(key_name) == 16 and told == ["2.0", str(step)]
    write_tables("language", [tmp_path / "record.json"], tmp_path / "tables", "smoke")
    said = " ".join((tmp_path / "tables" / "privacy_statement.md").read_text().split())
    assert "the selection of the reported checkpoint on dev examples, by permute and flip, 2-DP" in said
    assert "dev rows have no protection" not in said and "a dev example that of the selection" in said
    assert "and which checkpoint is reported, by a private selection" in said
    table = (tmp_path / "tables" / "privacy.md").read_text()
    assert (
        "reported: dev checkpoint by a private choice (accounted)" in table and "the larger of two" in table
    )


@pytest.mark.parametrize(
    "method",
    ["dpzero", "dp_sgd", *(pytest.param(m, marks=SLOW) for m in METHODS if m not in ("dpzero", "dp_sgd"))],
)
def test_the_watch_sees_the_curves_and_times_of_a_benchmark(watched_run, method):
    cell, seen, _, left, _ = watched_run(method, noise_key="published")
    point = left["record"]["curve"][-1]
    assert {point["train_loss"], point["train_seconds"], left["record"]["time"]["step_seconds"]} <= seen
    assert {point["train_loss"], point["train_seconds"]} <= numbers(left) & (seen - public_numbers(cell))


# --- the same releases from other data: the same to the byte


@contextmanager
def world(monkeypatch, number: int) -> Iterator[None]:
    """The same n, test set and released numbers whatever the number; other texts, labels, batches and times."""
    encode, draw = encoding.encode, np.random.default_rng(number)

    def encoded(*arguments):
        splits = encode(*arguments)
        for split in ("train", "dev"):
            part, order = splits[split], draw.permutation(len(splits[split]))
            texts = [part.ids(i)[: draw.choice([3, 11])] for i in range(len(part))]
            splits[split] = encoding.Examples.from_token_ids(texts, part.labels[order])
        return splits

    def released(step: int, count: int) -> torch.Tensor:
        return torch.randn(count, generator=torch.Generator().manual_seed(step))

    def release(self, clipped, clip):
        self.admit(len(clipped))
        return float(released(self._record(clip, [])[0], 1)) * clip

    def release_vectors(self, clipped, clip):
        self.admit(len(clipped))
        return (released(self._record(clip, [])[0], clipped.shape[1]) * clip).tolist()

    def release_(self, sums, clip):
        step, _ = self._record(clip, [])
        for tensor in sums:
            tensor.copy_(released(step, tensor.numel()).view_as(tensor) * clip)

    def choose(self, counts, epsilon):
        self.ledger.record_choice(self.key.name, epsilon, 10)
        return 10

    with monkeypatch.context() as patch:
        patch.setattr(Budget, "choose", choose)
        patch.setattr(encoding, "encode", encoded)
        patch.setattr(tasks, "digest", lambda task: f"{number:064d}")
        patch.setattr(RunKey, "secret", lambda: RunKey("secret", bytes(range(number, number + 32))))
        patch.setattr(RunKey, "name", "the same")  # it tells keys apart, and these must be two
        patch.setattr(ledger, "_lineages", {})  # so that the two runs are not taken for one
        patch.setattr(RunKey, "claim", lambda key: None)  # and the same ones in several runs
        patch.setattr(Budget, "release", release)
        patch.setattr(Budget, "release_vectors", release_vectors)
        patch.setattr(Budget, "release_", release_)
        yield


def comparable(left: dict) -> dict:
    """Tensors as bytes; without what a developer at work changes meanwhile."""
    kept = {
        key: left["record"]["provenance"][key] for key in ("model", "data", "packages", "device", "threads")
    }
    states = [
        [
            (path, leaf.numpy().tobytes() if torch.is_tensor(leaf) else leaf)
            for path, leaf in record_file.leaves(state)
        ]
        for state in left["states"]
    ]
    return left | {"record": left["record"] | {"provenance": kept}, "states": states}


@pytest.mark.parametrize(
    "method, iterate",
    [
        *(("dpzero", "last"), ("dp_adam", "last"), ("dpzero", "accounted")),  # one of each order
        *(pytest.param(m, "last", marks=SLOW) for m in METHODS if m not in ("dpzero", "dp_adam")),
        *(pytest.param(m, "accounted", marks=SLOW) for m in METHODS if m != "dpzero"),
    ],
)
def test_all_that_is_left_behind_is_a_function_of_the_releases(
    private, tmp_path, monkeypatch, method, iterate
):
    """And of what was chosen."""
    left = []
    for number in (1, 2):
        cell = private(method)
        cell["settings"] |= {"iterate": iterate} if iterate == "accounted" else {}
        with world(monkeypatch, number):
            left.append(comparable(left_behind(cell, tmp_path / str(number), monkeypatch)))
    first, second = left
    assert bool(first["candidates"]) == (iterate == "accounted")
    assert len(first["states"]) == 20 and first["record"]["status"] == "ok"
    assert first == second


def test_a_benchmark_of_other_data_leaves_other_things(private, tmp_path, monkeypatch):
    left = []
    for number in (1, 2):
        with world(monkeypatch, number):
            cell = private("dpzero", noise_key="published")
            left.append(comparable(left_behind(cell, tmp_path / str(number), monkeypatch)))
    first, second = (one["record"] for one in left)
    assert first["curve"] != second["curve"] and first["provenance"]["data"] != second["provenance"]["data"]
    assert first["metrics"] == second["metrics"]  # the same releases still give the same weights


# --- the lists


@pytest.fixture
def writing(private, tmp_path, monkeypatch) -> dict:
    """A cell whose model is scored by the F1 of what it writes, on a small SQuAD."""
    answer = {"title": "T", "context": "It was fun", "question": "Was it?", "answers": {"text": ["fun"]}}
    (tmp_path / "squad").mkdir()
    for split, count in (("train", 60), ("validation", 2)):
        rows = [json.dumps(answer | {"question": f"Was number {i}?"}) for i in range(count)]
        (tmp_path / "squad" / f"{split}.jsonl").write_text("\n".join(rows))
    monkeypatch.setenv("DPZERO_DATA_DIR", str(tmp_path))
    cell = private("dpzero", max_length=72, batch_size=10)
    return sweep.complete(cell | {"task": "squad", "model": "tiny-causal"})


@pytest.fixture
def demonstrating() -> dict:
    """A cell whose method writes demonstrations."""
    settings = {
        "noise_key": "secret",
        "steps": 8,
        "longest": 2,
        "batch_size": 60,
        "max_length": 64,
        "delta": 1e-4,
    }
    names = {"task": "toy", "model": "tiny-causal", "method": "dp_few_shot"}
    return sweep.complete(names | {"epsilon": "2", "seed": 0, "settings": settings})


def test_every_key_of_the_lists_is_one_that_a_run_writes(
    private, watched_run, writing, demonstrating, tmp_path, monkeypatch
):
    """What no run needs would be a hole."""
    written, saved, headers = set(), set(), set()
    cells = [private("dpzero", tune="full"), private("dpzero"), writing, demonstrating]
    cells[0]["settings"] |= {"unit": "user", "synthetic_users": 60}
    adafest = private("dp_sgd", tune="full")
    kept = {k: v for k, v in adafest["settings"].items() if k not in ("clipping", "optimizer")}
    cells.append(adafest | {"use": "dp_adafest", "settings": kept | {"map_share": 0.1}})
    cells[1]["settings"]["iterate"] = "accounted"
    cells[1]["rehearsal"] = {"steps": cells[1]["settings"]["steps"]}
    further = [left_behind(cell, tmp_path / str(n), monkeypatch) for n, cell in enumerate(cells)]
    for left in [*(watched_run(method).left for method in METHODS), *further]:
        written |= {path for path, _ in record_file.leaves(left["record"])}
        saved |= {path for state in left["states"] for path, _ in record_file.leaves(state)}
        headers |= {path for path, _ in record_file.leaves(left["transcript"].get("header", {}))}
    several = Ranks()
    several.size = 2
    ranks = describe_ranks(several, 20)
    written |= {f"provenance.ranks.{path}" for path, _ in record_file.leaves(ranks)}
    for listed, keys in (
        (record_file.ALLOWED_IN_A_RELEASE, written),
        (record_file.WITHHELD_FROM_A_RELEASE, written),
        (record_file.ALLOWED_IN_A_CHECKPOINT, saved),
        (record_file.ALLOWED_IN_A_TRANSCRIPT, headers),
    ):
        assert [p for p in listed if not any(f == p or f.startswith(p.removesuffix("*")) for f in keys)] == []


@pytest.mark.parametrize("noise_key, passes", [("secret", False), ("published", True)])
def test_a_new_key_in_a_record_is_refused_until_it_is_listed(
    private, tmp_path, monkeypatch, noise_key, passes
):
    statement = Budget.statement
    monkeypatch.setattr(Budget, "statement", lambda *given: statement(*given) | {"clipped_share": 0.3})
    cell, out = private("dpzero", noise_key=noise_key), tmp_path / "record.json"
    if passes:
        run_cell(cell, out, lambda line: None, "cpu")
    else:
        with pytest.raises(RuntimeError, match=r"privacy\.clipped_share"):
            run_cell(cell, out, lambda line: None, "cpu")
    assert out.exists() == passes


def test_a_new_key_in_a_checkpoint_is_refused_until_it_is_listed(private, tmp_path, monkeypatch):
    whole = TwoPoint.state_dict
    monkeypatch.setattr(TwoPoint, "state_dict", lambda self: whole(self) | {"loss": self.training_loss})
    monkeypatch.setattr(checkpoint, "SECONDS", 0)
    with pytest.raises(RuntimeError, match=r"method\.loss"):
        run_cell(private("dpzero"), tmp_path / "record.json", lambda line: None, "cpu")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "cell.json",
        "ledger",
        "transcript",
    }


def test_a_new_key_in_a_transcript_is_refused_until_it_is_listed(private, tmp_path, monkeypatch):
    whole = TwoPoint._header
    monkeypatch.setattr(TwoPoint, "_header", lambda self, *given: whole(self, *given) | {"examples": 240})
    with pytest.raises(RuntimeError, match="examples"):
        run_cell(private("dpzero"), tmp_path / "record.json", lambda line: None, "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["record.checkpoint"]


@pytest.mark.parametrize("method", ["dpzero", "dp_zo_laplace", "dp_aggzo"])
def test_the_rows_of_a_transcript_are_the_releases_over_the_batch_size(watched_run, method):
    cell, _, released, left, _ = watched_run(method)
    rows = np.array(left["transcript"]["scalars"])
    settings = cell["settings"]
    divisor = settings["batch_size"] * (2 * settings["smoothing"] if method == "dp_zo_laplace" else 1)
    assert np.allclose(rows, np.array(released[-20:]) / divisor, rtol=1e-14, atol=0)


# --- how a release ends, and what it says of itself


def test_out_of_memory_is_told_without_the_size_of_the_batch(private, tmp_path, monkeypatch):
    whole, calls = text_classifier.Classifier.forward, []

    def forward(self, *arguments):
        calls.append(None)
        if len(calls) > 70:  # shapes are tried first
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")
        return whole(self, *arguments)

    monkeypatch.setattr(text_classifier.Classifier, "forward", forward)
    left = left_behind(private("dpzero"), tmp_path, monkeypatch)
    assert left["record"]["status"] == "oom" and left["record"]["error"] == "out of memory"
    assert 0 < left["record"]["privacy"]["steps"] < 20


def test_divergence_is_told(private, tmp_path, monkeypatch):
    left = left_behind(private("dpzero", learning_rate=1e30), tmp_path, monkeypatch)
    assert left["record"]["status"] == "diverged" and "is not finite after" in left["record"]["error"]


def test_a_score_on_dev_is_refused_before_anything_runs(private, tmp_path):
    with pytest.raises(UsageError, match="noise_key secret with split dev"):
        run_cell(private("dpzero", split="dev"), tmp_path / "record.json", lambda line: None, "cpu")
    assert list(tmp_path.iterdir()) == []


def test_the_log_says_what_kind_of_run_it_is_and_a_release_logs_no_time(watched_run):
    name = "toy/tiny-encoder/dpzero/eps-2/seed-0"
    release = watched_run("dpzero").left["lines"]
    assert release[0].startswith(f"{name}: noise key secret: a private release")
    steps = [f"{name}: step {step} of 20" for step in range(2, 21, 2)]
    assert release[1:] == [*steps, f"{name}: evaluating on 120 test examples"]
    benchmark = watched_run("dpzero", noise_key="published").left["lines"]
    assert "a benchmark on public data, no private release" in benchmark[0]
    assert "losses, dev accuracy and times are logged" in benchmark[0]


def interrupted(monkeypatch, cell: dict, out: Path, log: Callable[[str], object], step: int = 13) -> None:
    """The run dies before this step, as of a signal."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, out, log, "cpu")


def test_a_release_that_was_cut_off_goes_on_without_times(private, tmp_path, monkeypatch):
    cell, out, lines = private("dp_adam"), tmp_path / "record.json", []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", 0)
        interrupted(patch, cell, out, lines.append)
    record = run_cell(cell, out, lines.append, "cpu")
    assert any("resumed at step 13 of 20" in line for line in lines)
    assert record["privacy"]["steps"] == 20 and record["curve"] == []


def test_one_that_ends_at_once_when_it_is_resumed_still_says_what_was_spent(private, tmp_path, monkeypatch):
    def no_memory(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    cell, out = private("dpzero"), tmp_path / "record.json"
    interrupted(monkeypatch, cell, out, lambda line: None)
    monkeypatch.setattr(text_classifier.Classifier, "forward", no_memory)
    monkeypatch.setattr(measurements, "FOLDER", "of no run yet")
    record = run_cell(cell, out, lambda line: None, "cpu")
    assert record["status"] == "oom" and record["memory"] is None
    assert record["privacy"]["steps"] == 13 and 0 < record["privacy"]["epsilon_spent"] < 2


def test_its_record_makes_tables_figures_and_a_statement(watched_run, tmp_path):
    files = [watched_run("dpzero").record]
    write_tables("language", files, tmp_path / "tables", "smoke")
    assert all(
        path.stat().st_size > 400 for path in write_figures("language", files, tmp_path / "figures", "smoke")
    )
    said = (tmp_path / "tables" / "privacy_statement.md").read_text()
    assert (
        "1 private run, 1 of them valid as a private release" in said and "each run is (2, 0.0001)-DP" in said
    )
