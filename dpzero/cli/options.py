"""How a verb of the command line is declared, and the types of its options.

Every option has a help text and states its default. A bad value is reported in one line before anything is
loaded.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from ..errors import one_line
from ..plan.settings import ANY, POSITIVE_COUNT, Range, number

# cpu,cpu: to try what several GPUs do
DEVICES = re.compile(r"cpu(,cpu)*|cuda(:\d{1,3})?(,cuda:\d{1,3})*", re.ASCII)
Options = dict[str, dict[str, Any]]
"""Flag, or name of a positional argument -> keyword arguments of `ArgumentParser.add_argument`."""
Answer = Callable[[argparse.Namespace], dict | None]


class Verb(NamedTuple):
    """A verb of the command line, as `verb` declares it."""

    name: str
    help: str
    answer: Answer
    options: Options
    compiles: bool


def verb(
    shared: Options | None = None, compiles: bool = False, **own: dict[str, Any]
) -> Callable[[Answer], Verb]:
    """Make a function a verb of its name; the first line of its docstring is the help text.

    The function gets the parsed options and returns the answer that is printed as JSON, or None if another
    rank prints it.

    Args:
        shared: options that several verbs take, and positional arguments.
        compiles: whether the verb runs compiled kernels, which need a writable cache.
        own: the verb's own options, by name: `batch_size` is --batch-size.
    """

    def declare(answer: Answer) -> Verb:
        text = (answer.__doc__ or "").splitlines()[0].rstrip(".")
        options = {flag(name): arguments for name, arguments in own.items()}
        return Verb(answer.__name__.replace("_", "-"), text, answer, options | (shared or {}), compiles)

    return declare


def flag(name: str) -> str:
    """batch_size -> --batch-size"""
    return f"--{name.replace('_', '-')}"


class Parser(argparse.ArgumentParser):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(allow_abbrev=False, **arguments)

    def error(self, message: str) -> NoReturn:
        print(one_line(f"{self.prog}: {message}"), file=sys.stderr)
        sys.exit(2)


def build_parser(groups: Iterable[ModuleType], description: str, version: str) -> Parser:
    """The parser of all verbs that these modules declare; the chosen one is `options.verb`."""
    parser = Parser(prog="dpzero", description=description)
    parser.add_argument("--version", action="version", version=f"dpzero {version}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB")
    parser.set_defaults(verb=None)
    for declared in (value for group in groups for value in vars(group).values() if isinstance(value, Verb)):
        subparser = subparsers.add_parser(declared.name, help=declared.help)
        for flag, arguments in declared.options.items():
            subparser.add_argument(flag, **arguments)
        subparser.set_defaults(verb=declared)
    return parser


# -- types of options ----------------------------------------------------------------------------------------


def device(text: str) -> str | None:
    if text and not DEVICES.fullmatch(text):
        raise argparse.ArgumentTypeError(f"unknown device {text!r}: give cpu, cuda, cuda:1, or cuda:0,cuda:1")
    return text or None


def number_type(kind: type[int] | type[float], allowed: Range = ANY) -> Callable[[str], int | float]:
    """A type of options: a number of this kind in a range."""

    def convert(text: str) -> int | float:
        try:
            return number(text, kind, allowed)
        except ValueError:
            name = "a whole number" if kind is int else "a number"
            limits = "" if allowed == ANY else f", {allowed}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}{limits}") from None

    return convert


def folder_to_read(text: str) -> Path:
    return _path(text, Path.is_dir, "no folder: give an existing one")


def file_to_write(text: str) -> Path:
    return _path(text, lambda path: not path.is_dir(), "a folder: give the name of a file", writes=True)


def folder_to_write(text: str) -> Path:
    def is_free(path: Path) -> bool:
        return path.is_dir() or not path.exists()

    return _path(text, is_free, "a file: give the name of a folder", writes=True)


def _path(text: str, accepts: Callable[[Path], bool], problem: str, writes: bool = False) -> Path:
    path = Path(text).expanduser()
    try:
        accepted = accepts(path)
        if accepted and writes:  # permissions alone do not show a read-only disk
            folders = (path / "file").absolute().parents if path.is_dir() else path.absolute().parents
            with tempfile.TemporaryFile(dir=next(folder for folder in folders if folder.exists())):
                pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"cannot use {text} ({reason}): give another place") from None
    if not accepted:
        raise argparse.ArgumentTypeError(f"{text} is {problem}")
    return path


# -- options that several verbs take -------------------------------------------------------------------------


def option(text: str, default: object = None, **arguments: Any) -> dict[str, Any]:
    """The arguments of an option. The help text gets the default, unless it says what happens without."""
    if default is None:
        return {"help": text} | arguments
    stated = default == "" or "(default" in text
    shown = " ".join(default) if isinstance(default, tuple) else "%(default)s"
    return {"help": text if stated else f"{text} (default: {shown})", "default": default} | arguments


def positive(text: str, default: int) -> dict[str, Any]:
    """An option that takes a positive integer."""
    return option(text, default, type=number_type(int, POSITIVE_COUNT))


INCLUDE: Options = {
    "--include": option(
        "folder of own tasks, models, methods and sweeps; may be given again",
        action="append",
        type=folder_to_read,
        metavar="FOLDER",
    )
}
SWEEP: Options = {"--sweep": option("name of the sweep, or path of a .yaml file", "quick"), **INCLUDE}
THREADS: Options = {
    "--threads": option("CPU threads; 0: all cores", 0, type=number_type(int, Range(0, 4096)))
}
COMPUTE: Options = {
    "--compute": option("type of matrix products", "float32", choices=("float32", "bfloat16"))
}
DEVICE: Options = {"--device": option("cpu, cuda or cuda:1 (default: a GPU if there is one)", type=device)}
FOLDER_VARIABLES = {"data_dir": "DPZERO_DATA_DIR", "model_dir": "DPZERO_MODEL_DIR"}  # of the environment
LOCAL_FILES: Options = {
    "--data-dir": option("folder of JSON lines, in place of the hub's data sets", type=folder_to_read),
    "--model-dir": option("folder of models, in place of the hub's", type=folder_to_read),
    **INCLUDE,
}
