"""The Hugging Face hub. Its library asks six times for each file, for half a minute; here it is asked once whether it answers."""

from __future__ import annotations

import os
import re
import sys
from functools import cache

ANSWER_SECONDS = 5


@cache
def read_cache_alone_if_silent() -> None:
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


def reason(error: Exception, of_the_hub: bool = True) -> str:
    """Why something could not be read, in a few words: that the hub is silent, or what a library's error says first."""
    from huggingface_hub import constants

    if of_the_hub and isinstance(error, OSError) and constants.HF_HUB_OFFLINE:
        silent = "is not asked (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") else "does not answer"
        return f"{constants.ENDPOINT} {silent}, and its cache on this machine does not hold it"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return re.split(r"(?<=[a-z)'\"]{2})\.\s", text)[0].rstrip(".")[:200]
