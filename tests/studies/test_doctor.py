"""The study `doctor`: it finds a wrong bit, keeps what it measured, and says what it left out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dpzero.__main__ import VERBS
from dpzero.cli.options import build_parser
from dpzero.errors import UsageError
from dpzero.language.models import random_models
from dpzero.plan import sweep
from dpzero.report import doctor as report
from dpzero.studies import benchmark
from dpzero.studies.doctor import environment, learning, pack, ranks, same_bits, step_costs, study
from dpzero.studies.doctor.machine import Machine, Section, Skipped
from dpzero.zeroth_order import dispatch


def machine(folder: Path, minutes: float = 1.0) -> Machine:
    return Machine("cpu", minutes, folder, folder / "figures", None, log=lambda line: None)


def test_the_first_element_that_differs_is_named_by_its_bits():
    plain = [torch.zeros(3), torch.ones(2, 2)]
    other = [torch.zeros(3), torch.ones(2, 2)]
    assert same_bits.first_difference(other, plain) == ""
    other[0][2] = -0.0  # equal as a number
    assert same_bits.first_difference(other, plain).startswith("tensor 0, element 2: ")
    other[0][2] = 0.0
    other[1][1, 0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert "tensor 1, element 2" in same_bits.first_difference(other, plain)
    assert "(1 of 4 differ)" in same_bits.first_difference(other, plain)


@pytest.mark.parametrize("law", ["gaussian", "sphere", "rademacher", "low_rank"])
def test_the_kernels_of_this_machine_have_the_plain_bits(law):
    elements, difference = same_bits._directions(law, torch.float32, torch.device("cpu"))
    assert elements > 500_000 and not difference


def test_a_kernel_that_is_wrong_in_one_element_is_found(monkeypatch):
    if dispatch.kernels_numba is None:
        pytest.skip("numba is not installed: the plain kernels are in use")
    right = dispatch.kernels_numba

    def wrong(kind, out, *arguments):
        right.add_(kind, out, *arguments)
        if len(out) > 1000:
            out[1000] += 1e-6 * abs(out[1000])

    monkeypatch.setattr(dispatch, "kernels_numba", SimpleNamespace(**{**vars(right), "add_": wrong}))
    _, difference = same_bits._directions("gaussian", torch.float32, torch.device("cpu"))
    assert "element 1000" in difference


def test_a_section_that_fails_costs_no_other_and_each_row_is_on_disk_before_the_next(tmp_path, monkeypatch):
    def on_disk() -> dict:
        return json.loads((tmp_path / "doctor.json").read_text("utf-8"))["sections"]

    def breaks(machine):
        yield {"what": "first", "same": True, "elements": 1, "difference": ""}
        assert on_disk()["same bits"]["rows"][0]["what"] == "first"
        raise RuntimeError("CUDA error: an illegal\nmemory access")

    def cannot(machine):
        raise Skipped("MiniLM needs a GPU")
        yield

    parts = {
        "same bits": Section(0, breaks),
        "learning": Section(0, cannot),
        "ranks": Section(1e9, cannot),
        "packages": Section(0, environment.packages),
    }
    monkeypatch.setattr(study, "sections", lambda: parts)
    found = study.examine(machine(tmp_path))["sections"]
    assert on_disk() == json.loads(json.dumps(found))
    assert found["same bits"]["status"] == "failed" and len(found["same bits"]["rows"]) == 1
    assert found["same bits"]["reason"] == "RuntimeError: CUDA error: an illegal memory access"
    assert (found["learning"]["status"], found["ranks"]["status"]) == ("skipped", "skipped")
    assert found["packages"]["status"] == "ok" and found["packages"]["rows"]
    page = report.write(tmp_path / "doctor.json", tmp_path / "tables")[0].read_text("utf-8")
    assert "1 rows in 0 s, then failed: RuntimeError" in page
    assert "Skipped: MiniLM needs a GPU." in page and "no time was left of 1 minutes" in page


def test_what_is_missing_has_the_command_that_brings_it(monkeypatch):
    real = environment.version

    def version(name):
        if name in ("opacus", "triton"):
            raise environment.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(environment, "version", version)
    rows = {row["name"]: row for row in environment.packages(None)}
    assert rows["opacus"]["version"] is None and rows["opacus"]["advice"] == "pip install opacus"
    assert rows["torch"]["version"] == torch.__version__
    if not torch.cuda.is_available():
        assert rows["triton"]["advice"] == "not needed without a GPU"


def test_the_floor_of_a_step_is_that_of_two_forward_passes_and_three_passes_over_the_weights():
    work = step_costs.Workload("minilm", 2, "16", "float32", (), 1, 32)
    floor = step_costs._floor(work, "cpu")
    tokens, layers, width, inner = 32, 6, 384, 1536
    products = layers * (4 * width * width + 2 * width * inner) * tokens
    scores = layers * 2 * 2 * 16 * 16 * width
    assert floor["two_forward_operations"] == pytest.approx(2 * 2 * (products + scores), rel=0.02)
    arithmetic = floor["two_forward_operations"] / floor["operations_per_second"]
    assert floor["two_forward_floor_seconds"] >= arithmetic
    assert floor["directions_floor_seconds"] > 0
    assert step_costs._step_floor(floor, "dpzero")["step_floor_seconds"] == pytest.approx(
        floor["two_forward_floor_seconds"] + floor["directions_floor_seconds"]
    )
    assert step_costs._step_floor(floor, "adamw")["step_floor_seconds"] is None


def test_a_measurement_ends_with_the_time(tmp_path):
    late = machine(tmp_path, minutes=1 / 60)
    late.started = time.monotonic()
    answer, error = late.ask("benchmark", "--model", "minilm")
    assert answer == {} and error == "benchmark was ended: no time was left"


def test_pack_refuses_a_folder_that_holds_something(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not empty: give a new folder"):
        pack.pack(tmp_path, log=lambda line: None)


# -- what a GPU is asked, as far as a machine without one can tell ---------------------------------------------


class Recorder(Machine):
    """A machine that says it has a GPU, and keeps the commands that it would run there."""

    def ask(self, *arguments, launcher=""):
        self.commands.append([str(argument) for argument in arguments])
        return {"rows": []}, ""


@pytest.fixture
def recorder(tmp_path) -> Recorder:
    found = Recorder("cuda:0", 1.0, tmp_path, tmp_path / "figures", None, log=lambda line: None)
    found.commands = []
    return found


def test_each_command_for_a_gpu_is_one_that_the_command_line_and_the_benchmark_know(recorder, monkeypatch):
    monkeypatch.setattr(step_costs, "_floor", lambda work, device: {})
    assert not list(step_costs.rows(recorder)) and len(recorder.commands) == len(step_costs.ON_CUDA)
    parser = build_parser(VERBS, "", "")
    for command in recorder.commands:
        options = parser.parse_args(command)
        assert set(options.rows) <= set(benchmark.ROWS) and options.device == "cuda:0"
        assert options.model in random_models.catalogue()
        benchmark.batch_of(options.batch_size, options.length)


@pytest.mark.slow
def test_predictions_stand_beside_the_peaks_of_step_costs_for_texts_of_one_length(recorder):
    work = next(
        work for work in step_costs.ON_CUDA if work.model == "roberta-large" and work.compute == "bfloat16"
    )
    measured = {"name": "dpzero", "title": "DPZero", "status": "ok", "weights_bytes": 1}
    measured |= {"peak_bytes": 2_000_000_000, "inference_peak_bytes": 1_900_000_000}
    file = step_costs._file(work, recorder)
    file.parent.mkdir(parents=True)
    file.write_text(
        json.dumps({"rows": [measured, {"name": "adamw", "title": "AdamW", "status": "oom"}]}), "utf-8"
    )
    dpzero, adamw = step_costs.memory_rows(recorder)
    assert dpzero["measured_peak_bytes"] == 2_000_000_000
    assert 1.4e9 < dpzero["predicted_inference_peak_bytes"] <= dpzero["predicted_peak_bytes"] < 3e9
    assert (
        adamw["status"] == "oom"
        and adamw["measured_peak_bytes"] is None
        and adamw["predicted_peak_bytes"] > 5e9
    )


def test_ranks_need_two_cards_and_learning_a_card(recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Skipped, match="this machine has one card"):
        list(ranks.rows(recorder))
    with pytest.raises(Skipped, match="are for a GPU"):
        list(learning.rows(machine(tmp_path)))


def test_with_two_cards_one_rank_and_two_are_asked_for_by_nccl(recorder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def ask(*arguments, launcher=""):
        recorder.commands.append([launcher, *map(str, arguments)])
        file = Path(arguments[arguments.index("--out") + 1])
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"transcript": {"weights_sha256": launcher[-1]}}), "utf-8")
        return {}, ""

    monkeypatch.setattr(recorder, "ask", ask)
    (row,) = ranks.rows(recorder)
    assert not row["same"] and "1" in row["difference"]
    assert [command[0][-1] for command in recorder.commands] == ["1", "2"]
    assert all(command[command.index("--backend") + 1] == "nccl" for command in recorder.commands)


@pytest.mark.slow
def test_ranks_joined_by_gloo_end_with_the_weights_of_one(tmp_path):
    row = ranks.compare(machine(tmp_path, minutes=4), "gloo")
    assert row["same"] and not row["difference"]


def smoke_cells(count: int) -> list[dict]:
    return list(sweep.load("smoke", tasks=["toy"], methods=["dpzero"], models=["tiny-encoder"]).values())[
        :count
    ]


@pytest.mark.slow
def test_runs_side_by_side_give_a_row_each_as_they_end(tmp_path):
    rows = list(learning.run_side_by_side(smoke_cells(2), machine(tmp_path, minutes=4)))
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert all(0 <= row["accuracy"] <= 1 and row["epsilon_spent"] > 0 for row in rows)


def test_runs_for_which_no_time_is_left_say_so(tmp_path):
    late = machine(tmp_path, minutes=0.01 + learning.LAST_SECONDS / 60)
    rows = list(learning.run_side_by_side(smoke_cells(1) * 5, late))
    assert [row["status"] for row in rows] == ["stopped"] * 3 + ["not begun"] * 2
