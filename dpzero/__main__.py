"""The command line: python -m dpzero VERB.

Each verb prints one JSON object as the last line of standard output. Bad arguments: one line on standard
error, status 2.
"""

from __future__ import annotations

import json
import os
import sys

from . import __version__, include
from .cli import catalogues, check_method, compare, memory, privacy, reports, runs, studies, workflow
from .cli.options import FOLDER_VARIABLES, build_parser
from .cli.process_setup import use_cache
from .cli.user_errors import report_failure
from .errors import let_every_print_pass
from .run.record_file import plain

VERBS = (
    workflow,
    compare,
    catalogues,
    check_method,
    runs,
    reports,
    studies,
    memory,
    privacy,
)  # modules that declare them


def main(arguments: list[str] | None = None) -> int:
    """Answer one command; returns the exit status."""
    let_every_print_pass()
    parser = build_parser(VERBS, __doc__.splitlines()[0], __version__)
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.print_help(sys.stderr)
        return 2
    for name, variable in FOLDER_VARIABLES.items():
        if folder := getattr(options, name, None):
            os.environ[variable] = str(folder.absolute())
    try:
        for folder in getattr(options, "include", None) or ():
            include.add(folder, "--include")
        if options.verb.compiles:
            use_cache()
        answer = options.verb.answer(options)
        if answer is not None:
            print(json.dumps(plain(answer), allow_nan=False), flush=True)
    except (Exception, KeyboardInterrupt) as error:
        return report_failure(error, options.verb.name)
    return 0 if answer is None or answer.get("match", True) else 1


if __name__ == "__main__":
    sys.exit(main())
