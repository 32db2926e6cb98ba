"""The Hugging Face hub: all that is asked of it, and what it answered, in one sentence.

Its library asks six times for each file, for half a minute. Here the hub is asked once whether it answers.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import UsageError
from .catalogue import Stanza

ANSWER_SECONDS = 5
SHOWN = 400  # characters of a list of names, in an error
CORRECT = "correct its `hub` in tasks.yaml"
KINDS = {"dataset": "data set", "model": "model"}  # as the hub calls them, and as we do


def rows(source: Stanza, split: str) -> Any:
    """The rows of a split, of the type of `datasets`. What is not here yet is downloaded, all splits at once.

    Args:
        source: the `hub` of a task: `name` on the hub, or a folder; `config`, of those that its README lists; `revision`,
            a branch or commit other than main; and the names of its splits.
        split: train or test.

    Raises:
        UsageError: with what the hub answered, or with the configs or splits that there are.
    """
    splits = _splits(source["name"], source.get("config"), source.get("revision"))
    if (name := source[split]) not in splits:
        raise UsageError(f"data set {source['name']} has no split {name}, but {', '.join(splits)}: {CORRECT}")
    return splits[name]


@cache
def _splits(name: str, config: str | None, revision: str | None) -> Mapping[str, Any]:
    import datasets

    datasets.disable_progress_bars()
    _read_cache_alone_if_silent()
    try:
        return datasets.load_dataset(name, config, revision=revision)
    except MemoryError:
        raise
    except Exception as error:  # its type depends on the library's version
        why = _answer("dataset", name, revision) or _other_configs(name, config, revision)
        raise _unread("dataset", name, error, why, "a folder of JSON lines as data_dir") from None


@cache
def snapshot(name: str, patterns: tuple[str, ...], instead: str) -> Path:
    """The folder with a model's files of these names; each is downloaded if it is not here yet.

    The folder's name is that of the commit. Files in folders of the repository are left out.

    Args:
        name: on the hub.
        patterns: of the names of files.
        instead: what to give if the hub does not have it, for the error.

    Raises:
        UsageError: with what the hub answered.
    """
    from huggingface_hub import snapshot_download

    _read_cache_alone_if_silent()
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except Exception as error:  # its type depends on the library's version
        raise _unread("model", name, error, _answer("model", name, None), instead) from None


@cache
def _read_cache_alone_if_silent() -> None:
    """If the hub does not answer, this process reads what the hub's cache on this machine holds."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception:  # its type depends on the version of the library
        constants.HF_HUB_OFFLINE = True
        if datasets := sys.modules.get("datasets"):
            datasets.config.HF_HUB_OFFLINE = True


# -- why something could not be read ------------------------------------------------------------------------

Why = tuple[str, str]  # the reason, and what to do about it


def _unread(kind: str, name: str, error: Exception, why: Why | None, instead: str) -> UsageError:
    words, remedy = why or (reason(error.__cause__ or error), "mend that")
    return UsageError(f"cannot read {KINDS[kind]} {name} ({words}): {remedy}, or give {instead}")


def _answer(kind: str, name: str, revision: str | None) -> Why | None:
    """Why the hub hands out no file of this repository; None if it does.

    `datasets` hides what the hub answered, so that it is asked again.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    hub = constants.ENDPOINT
    not_here = "and its cache on this machine does not hold it"
    if os.environ.get("HF_HUB_OFFLINE") and constants.HF_HUB_OFFLINE:
        return f"{hub} is not asked (HF_HUB_OFFLINE), {not_here}", "leave HF_HUB_OFFLINE out"
    try:
        file = hf_hub_url(name, ".gitattributes", repo_type=kind, revision=revision)  # each repository has it
        get_hf_file_metadata(file, timeout=ANSWER_SECONDS)
    except (errors.EntryNotFoundError, errors.HFValidationError):
        return None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        answer = f"{hub} answers {status}"
        if isinstance(error, errors.GatedRepoError):
            page = f"{hub}/{'datasets/' * (kind == 'dataset')}{name}"
            return f"{answer}: it is gated", f"accept its terms on {page} and log in with `hf auth login`"
        if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
            return (
                f"{answer}: it is not there, or private",
                "correct its name, or log in with `hf auth login`",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{answer}: it has no revision {revision}", CORRECT
        return answer, "try again later"
    except Exception:  # its type depends on the version of the library
        return f"{hub} does not answer, {not_here}", "try again with a connection to it"
    return None


def _other_configs(name: str, config: str | None, revision: str | None) -> Why | None:
    """That a data set does not have this config, and which it has; None if it does, or if that is not known."""
    from datasets import get_dataset_config_names

    try:
        known = get_dataset_config_names(name, revision=revision)
    except Exception:  # whose reason the first error has
        return None
    if config in known or (config is None and len(known) == 1):
        return None
    listed = textwrap.shorten(", ".join(known), SHOWN, placeholder=" ...")
    return f"it has the configs {listed}" + (f", not {config}" if config else ""), CORRECT


def reason(error: BaseException) -> str:
    """What a library's error says first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return re.split(r"(?<=[a-z)'\"]{2})\.\s", text)[0].rstrip(".")[:200]
