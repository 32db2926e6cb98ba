"""The verbs of the command line that ask of privacy: calibrate, epsilon, audit. torch is imported when one needs it."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UsageError
from ..plan.settings import FACTOR, POSITIVE, POSITIVE_COUNT, RUN_SETTINGS
from ..run.invariance import ARCHITECTURES, of_architectures
from .options import real, whole

# A short run with large batches: its trade-off curve is near a Gaussian one, and the lower bound through mu near the claim.
AUDITED = {"dataset_size": 10, "batch_size": 9, "steps": 8, "delta": 1e-5}


def add(verbs) -> None:
    """To the subparsers of the command line."""
    calibrate = verbs.add_parser("calibrate", help="noise for an epsilon")
    calibrate.add_argument("--epsilon", type=float, required=True, help="that all steps together may spend")
    calibrate.set_defaults(verb=_calibrate)
    epsilon = verbs.add_parser("epsilon", help="epsilon of a noise")
    epsilon.add_argument(
        "--noise-scale",
        type=float,
        required=True,
        help="Gaussian standard deviation or Laplace scale of the noisy sum, over the clip bound",
    )
    epsilon.add_argument("--more", action="store_true", help="the Renyi bound and mu, too")
    epsilon.set_defaults(verb=_epsilon)
    audit = verbs.add_parser("audit", help="transcripts of the real step code against its claim")
    audit.add_argument("--method", default="dpzero", help="dpzero or dp_zo")
    audit.add_argument("--epsilon", type=float, default=4.0, help="the claim")
    audit.add_argument(
        "--transcripts", type=whole(POSITIVE_COUNT), default=20_000, help="of each of the two worlds"
    )
    audit.add_argument(
        "--noise-factor", type=real(FACTOR), default=1.0, help="run with this times the noise: a planted bug"
    )
    audit.add_argument(
        "--models",
        nargs="*",
        default=ARCHITECTURES,
        help="published shapes whose losses are asked whether other examples move them; none: not asked",
    )
    audit.set_defaults(verb=_audit)
    for question in (calibrate, epsilon, audit):
        _setting_arguments(question, AUDITED if question is audit else {})
        if question is not audit:
            question.add_argument(
                "--tries",
                type=real(POSITIVE),
                help="mean of a random number of runs, of which the best counts (default: one run)",
            )
            question.add_argument(
                "--tries-law",
                default="geometric",
                help="law of that number: geometric, logarithmic, poisson, ...",
            )


SIZES = {
    "delta": (float, "of (epsilon, delta); 0 with laplace is pure epsilon"),
    "dataset_size": (int, "training examples"),
    "batch_size": (int, "expected examples of a batch"),
    "steps": (int, "releases"),
}


def _setting_arguments(parser: argparse.ArgumentParser, defaults: dict) -> None:
    for name in ("mechanism", "sampling", "adjacency"):
        entry = RUN_SETTINGS[name]
        parser.add_argument(f"--{name}", choices=entry.allowed, default=entry.default, help=entry.help)
    for name, (kind, words) in SIZES.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=kind, default=defaults.get(name), required=not defaults, help=words)
    parser.add_argument("--directions", type=int, default=1, help="random directions of one batch")


def _calibrate(options: argparse.Namespace) -> dict:
    with _refusals():
        setting = _setting(options)
        if options.tries is not None:
            return {"noise_scale": _tries(options).noise_scale(setting, options.epsilon)}
        return {"noise_scale": setting.noise_scale(options.epsilon)}


def _epsilon(options: argparse.Namespace) -> dict:
    with _refusals():
        setting, scale = _setting(options), options.noise_scale
        if options.tries is not None:
            return {"epsilon": _tries(options).epsilon(setting, scale)}
        asked = {"epsilon": setting.epsilon}
        if options.more:
            asked |= {"epsilon_rdp": setting.epsilon_rdp, "gdp_mu": setting.gdp_mu}
        found = {name: ask(scale) for name, ask in asked.items()}
    for name, value in found.items():
        if value is not None and math.isinf(value):
            print(
                f"dpzero: {name} is infinite, which is null in JSON: this noise bounds nothing",
                file=sys.stderr,
            )
    return found


def _audit(options: argparse.Namespace) -> dict:
    from ..studies.audit import audit

    with _refusals():
        counts = {"transcripts": options.transcripts, "noise_factor": options.noise_factor}
        judged = audit(options.method, _setting(options), options.epsilon, **counts)
    return judged | {"others_move": of_architectures(options.models)}


def _setting(options: argparse.Namespace):
    from dataclasses import fields

    from ..privacy.accounting import Setting

    setting = Setting(**{field.name: getattr(options, field.name) for field in fields(Setting)})
    if caution := setting.delta_warning():
        print(f"dpzero: {caution}", file=sys.stderr)
    return setting


def _tries(options: argparse.Namespace):
    from ..privacy.hyperparameter_selection import Tries

    return Tries(options.tries_law, options.tries)


@contextmanager
def _refusals() -> Iterator[None]:
    """What the privacy core refuses is a bad argument here."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
