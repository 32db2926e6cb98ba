"""Plants one privacy bug at a time in a copy of the project: a test must fail that passes without it.

    python tests/planted.py [WORD ...]

with words, only the plants whose names have one of them. A plant is a replacement of text, listed with the tests that should see it in
tests/privacy/plants/. Writes results/planted/caught.csv; exits with 1 where one was not caught, or where a test fails without a plant.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LISTS = ROOT / "tests" / "privacy" / "plants"
TABLE = ROOT / "results" / "planted" / "caught.csv"
COLUMNS = ("plant", "kind", "from", "file", "caught_by", "what_it_saw", "seconds")
COPIED = ("dpzero", "baselines", "tests", "pyproject.toml")
SECONDS = 120  # that the tests of a plant may take
OURS = "import pathlib, dpzero\nassert pathlib.Path(dpzero.__file__).is_relative_to(pathlib.Path(__file__).parent)\n"
# A plant that does not run is a mistake of the list, not a bug that was seen
BROKEN = re.compile(r"^E +(NameError|SyntaxError|ImportError|ModuleNotFoundError|UnboundLocalError)", re.M)


@dataclass(frozen=True)
class Plant:
    name: str
    kind: str
    edits: tuple[tuple[str, str, str], ...]  # (file, old, new)
    tests: tuple[str, ...]
    origin: str

    def apply(self, tree: Path) -> None:
        """Raises ValueError where a file does not have the old text exactly once."""
        for file, old, new in self.edits:
            text = (tree / file).read_text("utf-8")
            if text.count(old) != 1:
                raise ValueError(f"plant '{self.name}': {file} has {old!r} {text.count(old)} times, not once")
            (tree / file).write_text(text.replace(old, new), "utf-8")


@dataclass(frozen=True)
class Found:
    test: str  # the first that failed; empty for none
    saw: str
    seconds: float
    output: str


def source(file: Path) -> str:
    """The source of a file of tests; the contract of methods stands in the package, and its test file imports it."""
    contract = ROOT / "dpzero" / "studies" / "method_contract.py"
    more = contract.read_text("utf-8") if file.name == "test_contract.py" else ""
    return file.read_text("utf-8") + more


def plants() -> list[Plant]:
    plants = []
    for path in sorted(LISTS.glob("*.yaml")):
        for name, how in yaml.safe_load(path.read_text("utf-8")).items():
            edits = tuple(
                (each.get("file", how["file"]), each["old"], each["new"])
                for each in [how, *how.get("also", ())]
            )
            tests = how["tests"] if isinstance(how["tests"], list) else [how["tests"]]
            tests = tuple("tests/" + test for test in tests)
            plants.append(Plant(name, path.stem, edits, tests, how.get("from", "own list")))
    return plants


def ask(tests: tuple[str, ...], plant: Plant | None = None, seconds: float = SECONDS) -> Found:
    """Runs these tests on a copy of the project, with a bug in it or without."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="planted") as folder:
        tree = Path(folder)
        _copy(tree)
        if plant is not None:
            plant.apply(tree)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", "--tb=short"]
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
        try:
            run = subprocess.run(
                [*command, *tests], cwd=tree, env=environment, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return Found("", f"no answer in {seconds:g} s", seconds, "")
    output = run.stdout + run.stderr
    failed = re.search(
        r"^(?:FAILED|ERROR) (\S+::.*?)(?: - |$)", output, re.M
    )  # in the test, or in what it is given
    if run.returncode not in (0, 1) or BROKEN.search(output) or (run.returncode == 1 and not failed):
        return Found("", "the tests do not run", time.monotonic() - begin, output)
    saw = re.search(r"^E +(.*)", output, re.M)
    return Found(failed[1] if failed else "", saw[1].strip() if saw else "", time.monotonic() - begin, output)


def _copy(tree: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name)
        else:
            shutil.copy2(source, tree / name)
    (tree / "conftest.py").write_text(OURS)


def main(words: list[str]) -> int:
    chosen = [plant for plant in plants() if not words or any(word in plant.name for word in words)]
    if not chosen:
        print(f"no plant's name has any of {', '.join(words)}", file=sys.stderr)
        return 2
    os.nice(10)
    rows, missed = [], 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        every = tuple(dict.fromkeys(test for plant in chosen for test in plant.tests))
        control = pool.submit(ask, every, seconds=10 * SECONDS)
        for plant, outcome in zip(chosen, pool.map(lambda p: ask(p.tests, p), chosen), strict=True):
            missed += not outcome.test
            print(
                f"{'caught' if outcome.test else 'MISSED'}  {plant.name}: {outcome.test or outcome.saw}",
                flush=True,
            )
            if not outcome.test:
                print(outcome.output[-1500:])
            seen = outcome.test.removeprefix("tests/"), outcome.saw[:120], round(outcome.seconds)
            rows.append((plant.name, plant.kind, plant.origin, plant.edits[0][0], *seen))
        sound = control.result()
    _write(rows)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    if sound.test or sound.saw:
        print(f"without a plant: {sound.test or sound.saw}\n{sound.output[-3000:]}")
    return int(bool(missed or sound.test or sound.saw))


def _write(rows: list[tuple]) -> None:
    """Rows of plants that were not asked about stay, if these are still on the list."""
    table: dict[str, tuple] = {}
    if TABLE.exists():
        with TABLE.open(encoding="utf-8", newline="") as file:
            table = {row[0]: tuple(row) for row in csv.reader(file)}
    table |= {row[0]: row for row in rows}
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        known = [table[plant.name] for plant in plants() if plant.name in table]
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *known])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
