"""The options of the command line: each has help and tells its default, and a bad value is said in one line before anything is loaded."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import one_line
from ..plan.settings import ANY, COUNT, Range, number

DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?(,cuda:\d{1,3})*", re.ASCII)


class Parser(argparse.ArgumentParser):
    def __init__(self, **arguments) -> None:
        super().__init__(formatter_class=_Help, allow_abbrev=False, **arguments)

    def error(self, message: str):
        print(one_line(f"{self.prog}: {message}"), file=sys.stderr)
        sys.exit(2)


class _Help(argparse.HelpFormatter):
    """Defaults stand behind the words, unless these say what happens without the option."""

    def _get_help_string(self, action: argparse.Action) -> str:
        words = action.help or ""
        silent = any(action.default is value for value in (None, False, argparse.SUPPRESS))
        return (
            words
            if silent or action.default == "" or "(default" in words
            else f"{words} (default: %(default)s)".lstrip()
        )


def device(text: str) -> str | None:
    if text and not DEVICE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"unknown device {text!r}: give cpu, cuda, cuda:1, or cuda:0,cuda:1")
    return text or None


def whole(allowed: Range = COUNT) -> Callable[[str], int]:
    return _option(int, allowed, "a whole number")


def real(allowed: Range = ANY) -> Callable[[str], float]:
    return _option(float, allowed, "a number")


def _option(kind: type, allowed: Range, words: str) -> Callable[[str], int | float]:
    def convert(text: str) -> int | float:
        try:
            return number(text, kind, allowed)
        except ValueError:
            limits = "" if allowed == ANY else f", {allowed}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {words}{limits}") from None

    return convert


def folder_to_read(text: str) -> Path:
    path = Path(text).expanduser()
    with _refusals(text):
        if path.is_dir():
            return path
    raise argparse.ArgumentTypeError(f"{text} is no folder: give an existing one")


def file_to_write(text: str) -> Path:
    path = Path(text).expanduser()
    with _refusals(text):
        if not path.is_dir():
            _try_to_write(path)
            return path
    raise argparse.ArgumentTypeError(f"{text} is a folder: give the name of a file")


def folder_to_write(text: str) -> Path:
    path = Path(text).expanduser()
    with _refusals(text):
        if path.is_dir() or not path.exists():
            _try_to_write(path / "any")
            return path
    raise argparse.ArgumentTypeError(f"{text} is a file: give the name of a folder")


def _try_to_write(file: Path) -> None:
    """Where its folder will be; permissions alone do not tell (a read-only disk)."""
    nearest = next(folder for folder in file.absolute().parents if folder.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


@contextmanager
def _refusals(text: str) -> Iterator[None]:
    """What the system says of a path, in one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"cannot use {text} ({reason}): give another place") from None
