"""Two result folders compared: what agrees bit for bit, what an interval covers, what differs, and which cause is named."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dpzero.errors import UsageError
from dpzero.report import archive
from dpzero.report.differences import Recorded, causes, parting
from dpzero.report.reproduction import Comparison, Results, read
from dpzero.zeroth_order.transcript import Transcript

ROWS = 400
Records = list[dict]


@pytest.fixture
def answered(record) -> Callable[..., dict]:
    """answered(method, epsilon, seed, bits) -> a record with these bits of test rows."""

    def build(method: str, epsilon: str, seed: int, bits) -> dict:
        one = record(method, epsilon, seed, accuracy=float(np.mean(bits)))
        packed = np.packbits(np.asarray(bits, bool)).tobytes()
        one["metrics"] |= {"examples": len(bits), "correct": base64.b64encode(packed).decode()}
        return one

    return build


def compare(mine: Records, theirs: Records, partial: bool = False) -> Comparison:
    """The comparison of folders with these records."""
    sides = ({one["run"]: Recorded(one, Path("nowhere.json")) for one in side} for side in (mine, theirs))
    return Comparison(*(Results(False, records, {}) for records in sides), partial)


@pytest.fixture
def folders(tmp_path) -> Callable[[Records, Records], tuple[Path, Path]]:
    """folders(mine, theirs) -> two result folders with these records."""

    def write(*sides: Records) -> tuple[Path, Path]:
        for name, records in zip(("mine", "theirs"), sides, strict=True):
            for one in records:
                file = tmp_path / name / "runs" / f"{one['run']}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(one))
        return tmp_path / "mine", tmp_path / "theirs"

    return write


def draws(seeds: int, chance: float, stream: int, of_run: float = 0.0) -> np.ndarray:
    """Bits [seeds, rows]: rows differ in difficulty, in the same way for every stream, and runs in their luck."""
    difficulty = np.random.default_rng(0).normal(0, 1, ROWS)
    generator = np.random.default_rng((1, stream))
    luck = generator.normal(0, of_run, (seeds, 1))
    threshold = np.quantile(difficulty, chance)
    return difficulty + luck + generator.normal(0, 0.3, (seeds, ROWS)) < threshold


def bits(records: Records, row: str) -> np.ndarray:
    """The bits of a row's records: float [seeds, rows]."""
    packed = [one["metrics"]["correct"] for one in records if one["run"].startswith(f"{row}/")]
    return np.array(
        [np.unpackbits(np.frombuffer(base64.b64decode(p), np.uint8))[:ROWS].astype(float) for p in packed]
    )


def outcomes(found: Comparison) -> dict[str, str]:
    return {row.name.removeprefix("r8/minilm/"): row.outcome for row in found.rows}


# -- to the last bit


def test_times_machines_and_paths_are_no_numbers(record):
    mine, theirs = record(), record()
    mine["time"] = {"wall_seconds": 1e6}
    mine["memory"] |= {"peak_resident_bytes": 1, "peak_reserved_bytes": 2}
    mine["provenance"]["git"] = "another commit"
    mine["curve"][1]["train_seconds"] = 1e6
    mine["transcript"], theirs["transcript"] = ({"file": f"{name}.transcript"} for name in "ab")
    found = compare([mine], [theirs])
    assert found.verdict == "yes" and found.answer()["differences"] == []


EDITS: dict[str, Callable[[dict], object]] = {
    "metrics.loss": lambda one: one["metrics"].update(loss=0.9000000000000001),
    "metrics.split": lambda one: one["metrics"].update(split="dev"),
    "privacy.noise_scale": lambda one: one["privacy"].update(noise_scale=0.5),
    "memory.peak_allocated_bytes": lambda one: one["memory"].update(peak_allocated_bytes=7),
    "transcript.weights_sha256": lambda one: one["transcript"].update(weights_sha256="cd" * 32),
    "transcript.sha256": lambda one: one["transcript"].update(sha256="cd" * 32),
    "the curves part at step 25: dev_accuracy": lambda one: one["curve"][1].update(dev_accuracy=0.5),
    "the curves part at step 300: step": lambda one: one["curve"].append({"step": 300}),
}


@pytest.mark.parametrize("where", EDITS)
def test_whatever_a_run_measures_or_releases_counts_and_is_named(record, where):
    mine = record()
    mine["transcript"] = {"file": "a", "sha256": "ab" * 32, "weights_sha256": "ab" * 32}
    theirs = copy.deepcopy(mine)
    EDITS[where](mine)
    (difference,) = compare([mine], [theirs]).answer()["differences"]
    assert difference["parting"].startswith(where) and difference["causes"] == {}


# -- causes


CAUSES: dict[str, tuple[str, Callable[[dict], object]]] = {
    "code": ("code ffff", lambda one: one["provenance"].update(code="ffff")),
    "packages": (
        "torch 2.12.0, theirs 2.13.0",
        lambda one: one["provenance"]["packages"].update(torch="2.12.0"),
    ),
    "device": ("device H200, theirs Example", lambda one: one["provenance"].update(device="H200")),
    "rows": ("data.sha256 b3b3b3b3b3b3…", lambda one: one["provenance"]["data"].update(sha256="b3" * 32)),
    "weights": ("model.sha256 a2a2", lambda one: one["provenance"]["model"].update(sha256="a2" * 32)),
    "settings": ("clip 2, theirs not given", lambda one: one["cell"]["settings"].update(clip=2)),
    "noise": ("noise_key secret", lambda one: one["cell"]["settings"].update(noise_key="secret")),
}


def test_the_causes_are_named_in_their_order(record):
    mine, theirs = record(), record()
    for kind, (_, edit) in CAUSES.items():
        alone = record()
        edit(alone)
        edit(mine)
        assert list(causes(alone, theirs)) == [kind]
    found = causes(mine, theirs)
    assert list(found) == list(CAUSES)
    assert all(words in found[kind] for kind, (words, _) in CAUSES.items())
    assert causes(theirs, theirs) == {}


def test_a_digest_that_a_release_withholds_is_no_cause(record):
    mine, theirs = record(), record()
    mine["provenance"]["data"]["sha256"] = None
    assert causes(mine, theirs) == {}


@pytest.mark.parametrize("kind", ["rows", "weights", "settings"])
def test_a_run_on_other_inputs_reproduces_nothing(answered, kind):
    bits = draws(5, 0.8, 0)
    mine, theirs = ([answered("dpzero", "2", seed, one) for seed, one in enumerate(bits)] for _ in "ab")
    mine[0]["metrics"]["loss"] = 0.8
    CAUSES[kind][1](mine[0])
    found = compare(mine, theirs)
    assert outcomes(found) == {"dpzero/eps-2": "other inputs"} and found.verdict == "no"


@pytest.mark.parametrize("kind", ["code", "packages", "device", "rows", "weights"])
def test_equal_numbers_are_a_reproduction_and_what_differs_is_named_for_people_and_programs(record, kind):
    """A row or weight may differ that no run reads."""
    mine, theirs = record(), record()
    CAUSES[kind][1](mine)
    found = compare([mine], [theirs])
    assert found.verdict == "yes" and f"same numbers in spite of other {kind}" in found.text()
    (named,) = found.answer()["same_in_spite_of"]
    assert named["kinds"] == [kind] and CAUSES[kind][0] in named["causes"][kind] and not named["parting"]


def test_another_choice_among_tries_is_a_result(answered):
    def chosen(point: str, rate: float, stream: int) -> Records:
        records = [answered("dpzero", "2", seed, one) for seed, one in enumerate(draws(5, 0.8, stream))]
        for one in records:
            one["cell"]["search"] = {"tries": 9, "chosen": point, "score": rate}
            one["cell"]["settings"]["learning_rate"] = rate
        return records

    found = compare(chosen("rate1", 0.1, 1), chosen("rate2", 0.2, 2))
    assert found.verdict == "within intervals"
    assert list(found.answer()["differences"][0]["causes"]) == ["choice", "settings"]


# -- where the numbers part


def with_transcript(one: dict, folder: Path, scalars: list[float], seed: int = 0) -> Recorded:
    """The record and its transcript, as the optimizer writes it."""
    folder.mkdir()
    header = {"format": "dpzero transcript 3", "law": {"seed": seed}, "directions": 1, "groups": [[0, 1]]}
    transcript = Transcript(folder / "seed-0.transcript", header)
    for scalar in scalars:
        transcript.append([scalar], [0.1])
    transcript.close()
    digest = hashlib.sha256((folder / "seed-0.transcript").read_bytes()).hexdigest()
    return Recorded(
        one | {"transcript": {"file": "seed-0.transcript", "sha256": digest}}, folder / "seed-0.json"
    )


@pytest.mark.parametrize(
    ("scalars", "seed", "words"),
    [
        ([1.0, 2.0, np.nextafter(3.0, 4)], 0, "part at step 2 of 3: scalar 3.0000000000000004, theirs 3.0"),
        ([1.0, 2.0], 0, "steps of the transcripts 2, theirs 3"),
        ([1.0, 2.0, 3.0], 1, "differ in their first line (law.seed 1, theirs 0)"),
    ],
)
def test_the_first_release_that_differs_is_named(record, tmp_path, scalars, seed, words):
    mine = with_transcript(record(), tmp_path / "a", scalars, seed)
    theirs = with_transcript(record(), tmp_path / "b", [1.0, 2.0, 3.0])
    mine.record["curve"][2]["dev_accuracy"] = 0.1
    assert words in parting(mine, theirs)
    mine.file.with_suffix(".transcript").unlink()
    assert parting(mine, theirs).startswith("the curves part at step 50: dev_accuracy 0.1")


# -- intervals


def sweep_of(
    answered, streams: dict[str, int], seeds: int = 5, of_run: float = 0.0, chance: float = 0.8
) -> Records:
    return [
        answered("dpzero", epsilon, seed, bits)
        for epsilon, stream in streams.items()
        for seed, bits in enumerate(draws(seeds, chance, stream, of_run))
    ]


def test_other_noise_is_within_the_interval_and_another_accuracy_is_not(answered):
    theirs = sweep_of(answered, {"2": 1, "6": 2}, of_run=0.05)
    found = compare(sweep_of(answered, {"2": 3, "6": 4}, of_run=0.05), theirs)
    assert found.verdict == "within intervals" and set(outcomes(found).values()) == {"within the interval"}
    assert found.answer()["match"] and 0 < found.answer()["widest_half_interval"] < 0.15
    worse = sweep_of(answered, {"2": 3}, of_run=0.05) + sweep_of(answered, {"6": 4}, of_run=0.05, chance=0.6)
    found = compare(worse, theirs)
    assert outcomes(found) == {"dpzero/eps-2": "within the interval", "dpzero/eps-6": "different"}
    assert found.verdict == "no" and not found.answer()["match"]


def test_sixty_rows_give_no_false_alarm(answered):
    """Noise moves the answers of a run together. With Satterthwaite's own degrees of freedom a row would be called different."""
    mine, theirs = (
        sweep_of(answered, {str(row): first + row for row in range(1, 61)}, of_run=0.2)
        for first in (1300, 1200)
    )
    found = compare(mine, theirs)
    assert len(found.rows) == 60 and set(outcomes(found).values()) == {"within the interval"}
    assert found.verdict == "within intervals"
    widest = found.answer()["widest_half_interval"]
    assert f"± {100 * widest:.1f} points at the widest" in found.text() and 0.2 < widest < 1


def test_an_interval_with_room_for_every_score_shows_nothing(answered):
    """Two seeds, twelve rows."""
    mine, theirs = (
        sweep_of(answered, {str(row): first + row for row in range(1, 13)}, seeds=2, of_run=0.2)
        for first in (1300, 1200)
    )
    found = compare(mine, theirs)
    assert "nothing shown" in outcomes(found).values() and found.verdict == "no"
    assert found.answer()["widest_half_interval"] > 1


def test_one_seed_of_a_trained_row_shows_nothing(answered):
    found = compare(sweep_of(answered, {"2": 1}, seeds=1), sweep_of(answered, {"2": 2}, seeds=1))
    assert outcomes(found) == {"dpzero/eps-2": "nothing shown"} and found.verdict == "no"


@pytest.mark.parametrize(("flipped", "outcome"), [(5, "within the interval"), (6, "different")])
def test_a_row_that_no_seed_changes_is_tested_over_test_rows(answered, flipped, outcome):
    """As by McNemar's exact test, whose p-value is 2 / 2^flipped if all flips make wrong answers right."""
    before = draws(1, 0.8, 0)[0]
    after = before.copy()
    after[np.flatnonzero(~before)[:flipped]] = True
    found = compare([answered("zero_shot", "0", 0, after)], [answered("zero_shot", "0", 0, before)])
    assert outcomes(found) == {"zero_shot/eps-0": outcome}


def test_numbers_that_change_no_answer_are_within(answered):
    mine, theirs = (sweep_of(answered, {"2": 1}, seeds=1) for _ in "ab")
    mine[0]["metrics"]["loss"] = 0.8
    found = compare(mine, theirs)
    assert outcomes(found) == {"dpzero/eps-2": "same answers"} and found.verdict == "within intervals"


def test_without_bits_the_seeds_decide(record):
    theirs = [record(seed=seed, accuracy=0.8 + 0.01 * seed) for seed in range(5)]
    for shift, outcome in ((0.001, "within the interval"), (0.2, "different")):
        mine = [
            record(seed=s, accuracy=0.8 + 0.01 * s - shift * (1 + 0.2 * (s % 2 - s / 4))) for s in range(5)
        ]
        if outcome == "within the interval":
            mine[0]["metrics"]["accuracy"] += 0.004
        assert outcomes(compare(mine, theirs)) == {"dpzero/eps-2": outcome}


# -- endings, privacy, tries


def test_a_run_that_fails_on_one_side_alone_is_no_reproduction(record):
    theirs = [record(seed=seed) for seed in range(3)]
    mine = [record(seed=0, status="diverged"), *theirs[1:]]
    found = compare(mine, theirs)
    assert outcomes(found) == {"dpzero/eps-2": "other ending"} and found.verdict == "no"


def test_runs_that_fail_alike_agree(record):
    mine, theirs = ([record(seed=seed, status="diverged") for seed in range(2)] for _ in "ab")
    assert compare(mine, theirs).verdict == "yes"
    mine[0]["curve"][1]["dev_accuracy"] = 0.1
    found = compare(mine, theirs)
    assert outcomes(found) == {"dpzero/eps-2": "failed alike"} and found.verdict == "within intervals"


def test_an_epsilon_that_one_side_alone_keeps_is_no_reproduction(answered):
    mine, theirs = (sweep_of(answered, {"2": 1}) for _ in "ab")
    mine[3]["privacy"]["epsilon_spent"] = 2.5
    found = compare(mine, theirs)
    assert outcomes(found) == {"dpzero/eps-2": "other epsilon"} and found.verdict == "no"


def test_tries_that_differ_decide_nothing(record):
    mine, theirs = record("dpzero@rate1"), record("dpzero@rate1")
    mine["metrics"]["accuracy"] = 0.1
    found = compare([mine], [theirs])
    assert outcomes(found) == {"dpzero@rate1/eps-2": "other tries"} and found.verdict == "within intervals"


# -- records of one side, damaged records, folders


def test_what_one_side_alone_has_is_not_reproduced_unless_left_out(record):
    theirs = [record(seed=seed) for seed in range(3)] + [record("mezo", "inf")]
    found = compare(theirs[:2], theirs)
    assert found.verdict == "no" and found.answer()["records"]["only_theirs"] == 2
    assert found.answer()["rows"] == {"bit_for_bit": 1, "only_mine": 0, "only_theirs": 1}
    assert (
        "Only theirs: 2 records (r8/minilm/dpzero/eps-2/seed-2, r8/minilm/mezo/eps-inf/seed-0)"
        in found.text()
    )
    assert compare(theirs[:2], theirs, partial=True).verdict == "yes"
    assert compare(theirs, theirs[:2]).verdict == "no"
    assert compare(theirs[3:], theirs[:2], partial=True).verdict == "no"  # nothing is left


DAMAGES: dict[str, Callable[[Path], object]] = {
    "is no JSON": lambda file: file.write_text(file.read_text()[:100]),
    "is no valid record (status": lambda file: file.write_text(file.read_text().replace('"ok"', '"fine"')),
    "its cell is r8/minilm/dpzero/eps-2/seed-1": lambda file: file.write_text(
        file.read_text().replace('"seed": 0', '"seed": 1')
    ),
    "holds another run, r8/minilm/dpzero/eps-2/seed-1": lambda file: shutil.copy(
        file.with_name("seed-1.json"), file
    ),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_record_is_named_and_not_reproduced(record, folders, words):
    records = [record(seed=seed) for seed in range(2)]
    mine, theirs = folders(records, records)
    assert Comparison(read(mine), read(theirs)).verdict == "yes"
    file = mine / "runs" / f"{records[0]['run']}.json"
    DAMAGES[words](file)
    found = Comparison(read(mine), read(theirs), partial=True)
    assert found.verdict == "no" and found.answer()["records"]["only_theirs"] == 0
    (line,) = [line for line in found.text().splitlines() if line.startswith("Damaged")]
    assert str(file) in line and words in line
    assert [f"Damaged: {why}." for why in found.answer()["damaged"]] == [line]


def test_folders_of_several_sweeps_are_compared_sweep_by_sweep(record, folders, tmp_path):
    mine, theirs = folders([record()], [record()])
    for side in (mine, theirs):
        for sweep in ("one", "two"):
            shutil.copytree(side, tmp_path / f"all-{side.name}" / sweep)
    (tmp_path / "all-mine" / "three" / "tables").mkdir(parents=True)
    file = tmp_path / "all-mine" / "two" / "runs" / f"{record()['run']}.json"
    file.write_text(json.dumps(record(accuracy=0.5)))
    found = Comparison(read(tmp_path / "all-mine"), read(tmp_path / "all-theirs"))
    assert {row.name: row.outcome for row in found.rows} == {
        "one/r8/minilm/dpzero/eps-2": "bit for bit",
        "two/r8/minilm/dpzero/eps-2": "nothing shown",
    }
    with pytest.raises(UsageError, match="one folder is of a sweep and the other of several"):
        Comparison(read(tmp_path / "all-mine"), read(theirs))
    with pytest.raises(UsageError, match="three holds no records"):
        read(tmp_path / "all-mine" / "three")


# -- archives ----------------------------------------------------------------------------------------------------


@pytest.fixture
def archived(answered, folders) -> tuple[Path, Path]:
    """Two equal result folders, of which the first holds an archive and no records."""
    records = [answered("dpzero", "2", seed, [True] * ROWS) for seed in range(3)]
    mine, theirs = folders(records, records)
    archive.pack(mine)
    shutil.rmtree(mine / "runs")
    return mine, theirs


def test_an_archive_takes_the_place_of_the_records_it_was_made_of(archived):
    mine, theirs = archived
    assert Comparison(read(mine), read(theirs)).answer()["reproduced"] == "yes"
    assert not (mine / "runs").exists()


def test_equal_records_give_equal_archives(archived):
    mine, theirs = archived
    for file in theirs.rglob("*.json"):
        file.touch()
    assert archive.pack(theirs).read_bytes() == (mine / archive.NAME).read_bytes()


def test_unpacking_leaves_records_that_exist(archived):
    mine, _ = archived
    assert archive.unpack(mine, mine) == 3
    kept, missing, _ = sorted((mine / "runs").rglob("*.json"))
    kept.write_text("mine", "utf-8")
    missing.unlink()
    assert archive.unpack(mine, mine) == 1
    assert kept.read_text("utf-8") == "mine" and missing.exists()


def test_folders_that_have_nothing_to_pack_or_unpack_are_refused(tmp_path):
    with pytest.raises(UsageError, match="has no records to pack: give results/SWEEP"):
        archive.pack(tmp_path)
    with pytest.raises(UsageError, match="cannot be unpacked"):
        archive.unpack(tmp_path, tmp_path)
    (tmp_path / archive.NAME).write_bytes(b"no archive")
    with pytest.raises(UsageError, match="cannot be unpacked"):
        archive.unpack(tmp_path, tmp_path)
