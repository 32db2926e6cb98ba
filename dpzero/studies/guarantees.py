"""The sweep `guarantees`: what public implementations claim, and which epsilon their code gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ..files import run_id
from ..privacy.accounting import Setting
from ..privacy.public_implementations import DIVISORS, IMPLEMENTATIONS, PublicRun
from ..run.provenance import provenance


def measure(cell: dict, log: Callable[[str], object] = print, device: str | None = None) -> dict:
    """The parts of a record; `guarantee` has epsilons at the claim's delta, noise scales over the clip."""
    practice, settings = IMPLEMENTATIONS[cell["method"]], cell["settings"]
    claim, delta = float(cell["epsilon"]), settings["delta"]
    sizes = {name: settings[name] for name in ("dataset_size", "batch_size", "steps")}
    ours = Setting("gaussian", "poisson", "add_remove", **sizes, delta=delta)
    published = PublicRun(practice, claim, ours, settings["assumed_size"] or None)
    log(f"{run_id(cell)}: noise by {practice.accountant}, then bounds, then this project's noise")
    noise = published.noise_scale
    guarantee = {
        "source": practice.source,
        "claimed_epsilon": claim,
        "claimed_delta": delta,
        "claimed_accountant": practice.accountant,
        "sampling": practice.sampling,
        "batches_per_epoch": published.batches,
        "last_batch": published.last_batch,
        "divisor": DIVISORS[practice.divisor],
        "noise_scale": noise,
        "noise_source": practice.noise_source,
        "as_it_is": "none",  # no epsilon: an adversary who knows the seeds subtracts the noise
        "adjacency": practice.adjacency,
        "epsilon_at_least": math.floor(published.epsilon_lower() * 1e4) / 1e4,
        "epsilon_at_most": math.ceil(published.epsilon_upper() * 1e4) / 1e4,
        "bound": published.bound,
        "our_accountant": ours.accountant,
        "our_noise_scale": ours.noise_scale(claim),
    }
    guarantee["ratio"] = noise / guarantee["our_noise_scale"]
    if practice.adjacency == "replace_one":  # compare the same guarantee: one example replaced
        replaced = replace(ours, sampling="without_replacement", adjacency="replace_one").noise_scale(claim)
        guarantee |= {"our_noise_scale_replace_one": replaced, "ratio_replace_one": noise / replaced}
    return {
        "method": {"title": practice.title, "private": True, "order": 0},
        "guarantee": guarantee,
        "provenance": provenance(cell["method"], "cpu"),
    }
