"""Errors that a user can correct, in one line on standard error with an exit status."""

from __future__ import annotations

import errno
import os
import sys

from ..errors import RankFailure, UsageError, one_line

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, limit of a file
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def report_failure(error: BaseException, verb: str) -> int:
    """Print one line and return the exit status. Raises any other error, which is a bug, again."""
    if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    message, status = _explain(error, verb)
    print(one_line(f"dpzero: {message}"), file=sys.stderr, flush=True)
    return status


def _explain(error: BaseException, verb: str) -> tuple[object, int]:
    if isinstance(error, UsageError):
        return error, 2
    if isinstance(error, RankFailure):
        return error, 1
    if isinstance(error, KeyboardInterrupt):
        resumes = verb == "run"
        return "interrupted: " + (
            "the same command resumes from the last checkpoint" if resumes else "nothing was finished"
        ), INTERRUPTED
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith(("dpzero", "baselines")):
        package = str(error.name).partition(".")[0].replace("_", "-")
        return f"{verb} needs the package {package}, which is not installed: pip install {package}", 1
    if isinstance(error, OSError):
        if error.errno in DISK_FULL:
            return f"{error.strerror}: make room and give the same command again; a run resumes", 1
        if error.errno in NO_PATH:
            return f"{error.strerror}: {error.filename}: give another path", 2
        if error.errno in DENIED:
            advice = "give a place that you may write, for the cache as $DPZERO_CACHE"
            return f"{error.strerror}: {error.filename}: {advice}", 2
    raise error
