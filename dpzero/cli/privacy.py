"""The verbs about privacy: calibrate, epsilon, audit. Each imports torch only if it needs it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..plan.settings import FACTOR, POSITIVE, RUN_SETTINGS
from .options import Options, number_type, option, positive, verb
from .process_setup import log

if TYPE_CHECKING:
    from ..privacy.accounting import Setting
    from ..privacy.hyperparameter_selection import Tries


NOISE_SCALES = {"gaussian": "standard deviation", "laplace": "Laplace scale"}
# A short run with large batches: its trade-off curve is nearly Gaussian, so the bound through mu is tight.
AUDITED = {"dataset_size": 10, "batch_size": 9, "steps": 8, "delta": 1e-5}
SIZES = {
    "delta": (float, "delta of (epsilon, delta); 0 with laplace is pure epsilon"),
    "dataset_size": (int, "training examples"),
    "batch_size": (int, "expected examples of a batch"),
    "steps": (int, "number of releases, one a batch, however many micro-batches it is evaluated in"),
}


def _setting_options(defaults: dict | None = None) -> Options:
    """The fields of `Setting`; its sizes are required unless they have defaults."""
    entries = {name: RUN_SETTINGS[name] for name in ("mechanism", "sampling", "adjacency")}
    options = {f"--{name}": option(e.help, e.default, choices=e.allowed) for name, e in entries.items()}
    for name, (kind, text) in SIZES.items():
        given = {"default": defaults[name]} if defaults else {"required": True}
        options["--" + name.replace("_", "-")] = option(text, type=kind, **given)
    options["--directions"] = option("random directions of one batch", 1, type=int)
    words = "examples of one user, each drawn on its own, that are protected together"
    return options | {"--group-size": option(words, 1, type=int)}


ACCOUNT: Options = _setting_options() | {
    "--tries": option(
        "mean of a random number of runs, of which the best counts (default: one run)",
        type=number_type(float, POSITIVE),
    ),
    "--tries-law": option("law of that number: geometric, logarithmic, poisson, ...", "geometric"),
}


@verb(
    ACCOUNT,
    epsilon=option(
        "budget of all steps together; the answer is the noise on the sum, over the clip, before division by the batch "
        "size",
        type=float,
        required=True,
    ),
)
def calibrate(options: argparse.Namespace) -> dict:
    """Compute the noise for an epsilon."""
    with _usage_errors():
        setting, tries = _setting(options), _tries(options)
        scale = tries.noise_scale(setting, options.epsilon) if tries else setting.noise_scale(options.epsilon)
    shares = {"in_all_steps": setting.steps, "in_an_epoch": setting.period}
    return {
        "noise_scale": scale,
        "noise_is": (
            f"{NOISE_SCALES[setting.mechanism]} on the sum = noise_scale x clip, before division by the expected batch "
            f"size of {setting.batch_size}"
        ),
        "share_of_examples_seen": {name: setting.share_seen(steps) for name, steps in shares.items()},
    }


@verb(
    ACCOUNT,
    noise_scale=option(
        "Gaussian standard deviation or Laplace scale of the noisy sum, over the clip bound, before division by the "
        "batch size",
        type=float,
        required=True,
    ),
    more=option("also print the Renyi bound and mu", action="store_true"),
)
def epsilon(options: argparse.Namespace) -> dict:
    """Compute the epsilon of a noise."""
    with _usage_errors():
        setting, scale = _setting(options), options.noise_scale
        if tries := _tries(options):
            return {"epsilon": tries.epsilon(setting, scale)}
        answer: dict[str, float | None] = {"epsilon": setting.epsilon(scale)}
        if options.more:
            answer |= {"epsilon_rdp": setting.epsilon_rdp(scale), "gdp_mu": setting.gdp_mu(scale)}
    for name, value in answer.items():
        if value is not None and math.isinf(value):
            log(f"dpzero: {name} is infinite, which is null in JSON: this noise bounds nothing")
    return answer


@verb(
    _setting_options(AUDITED),
    method=option("dpzero or dp_zo", "dpzero"),
    epsilon=option("the claim", 4.0, type=float),
    transcripts=positive("transcripts of each of the two neighbouring data sets", 20_000),
    noise_factor=option(
        "multiply the noise by it: below 1 is a planted bug", 1.0, type=number_type(float, FACTOR)
    ),
    models=option(
        "architectures whose losses are tested for batch invariance; none: no test",
        ("roberta-base", "opt-125m"),  # an encoder and a decoder
        nargs="*",
    ),
    compiles=True,
)
def audit(options: argparse.Namespace) -> dict:
    """Test the claim of a private method on transcripts of its own step code."""
    from ..studies.audit import audit, measure_batch_invariance

    counts = {"transcripts": options.transcripts, "noise_factor": options.noise_factor}
    with _usage_errors():
        verdict = audit(options.method, _setting(options), options.epsilon, **counts)
    return verdict | {"others_move": measure_batch_invariance(options.models)}


def _setting(options: argparse.Namespace) -> Setting:
    from ..privacy.accounting import Setting

    setting = Setting(**{field.name: getattr(options, field.name) for field in fields(Setting)})
    if caution := setting.delta_warning():
        log(f"dpzero: {caution}")
    return setting


def _tries(options: argparse.Namespace) -> Tries | None:
    from ..privacy.hyperparameter_selection import Tries

    return None if options.tries is None else Tries(options.tries_law, options.tries)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Report what the privacy core refuses as a bad argument."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
