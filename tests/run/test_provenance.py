"""The digests: every file that can change a number is in one of them; a change of any other is in none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import dpzero
from dpzero.plan import registry
from dpzero.run import provenance

# By hand, apart from the list in the source: what no number of a run comes from
NO_NUMBER = ("report/", "cli/", "sweeps/", "profiles/", "environment.yaml", "__main__.py")


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("house")
    for name in ("dpzero", "baselines"):
        shutil.copytree(registry.ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def test_every_file_that_can_change_a_number_is_in_a_digest(house, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", house)
    before = provenance.core_digest()
    (house / "dpzero" / "files.py").write_bytes((house / "dpzero" / "files.py").read_bytes() + b"\n")
    assert provenance.core_digest() != before
    monkeypatch.setattr(provenance, "_digest", lambda files: files)
    covered = {file.relative_to(house / "dpzero").as_posix() for file in provenance.core_digest()}
    files = {
        path.relative_to(house / "dpzero").as_posix()
        for path in (house / "dpzero").rglob("*")
        if path.suffix in (".py", ".yaml", ".csv")
    }
    assert covered == {f for f in files if not f.startswith(NO_NUMBER) and f != "algorithm.py"}


def test_a_methods_digest_is_of_its_file_and_those_that_it_imports(house, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", house)
    names = ("dpzero", "dp_sgd", "dp_zoso", "fine_tuning", "mezo")
    own = {"baselines/mezo": {"mezo"}, "baselines/dp_sgd": {"dp_sgd"}}
    own |= {
        "baselines/_per_sample_gradients": {"dp_sgd"},
        "baselines/fine_tuning": {"dp_sgd", "fine_tuning"},
        "baselines/dp_zo": set(),
        "dpzero/algorithm": {"dpzero", "dp_zoso"},
        "baselines/dp_zoso": {"dp_zoso"},
    }
    before, core = {name: provenance.method_digest(name) for name in names}, provenance.core_digest()
    for place, expected in own.items():
        file = house / f"{place}.py"
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        assert {name for name in names if provenance.method_digest(name) != before[name]} == expected, place
        assert provenance.core_digest() == core
        file.write_bytes(content)


def test_a_file_that_moves_changes_the_digest(house, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", house)
    before = provenance.core_digest()
    file = house / "dpzero" / "language" / "models" / "losses.py"
    file.rename(file.with_name("other.py"))
    assert provenance.core_digest() != before
    file.with_name("other.py").rename(file)


def test_an_installed_package_has_its_version_for_a_commit(house, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", house)
    version = {"git": f"dpzero-{dpzero.__version__}", "dirty": False}
    assert provenance.commit() == version
    subprocess.run(
        ["git", "init", "-q", str(house)], check=True
    )  # an environment in a checkout of something else
    assert provenance.commit() == version


def test_of_a_checkout_it_is_the_last_commit_of_the_source():
    commit = provenance.commit()
    if (registry.ROOT / ".git").exists():
        assert len(commit["git"]) == 40 and isinstance(commit["dirty"], bool)
