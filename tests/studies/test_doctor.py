"""The study `doctor`: it finds a wrong bit, keeps what it measured, and says what it left out."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dpzero.errors import UsageError
from dpzero.report import doctor as report
from dpzero.studies.doctor import environment, pack, same_bits, step_costs, study
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
