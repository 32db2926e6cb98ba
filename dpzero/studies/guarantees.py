"""The sweep `guarantees`: what public implementations claim, and what their code gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..files import run_id
from ..privacy.accounting import Setting
from ..privacy.public_implementations import DIVISORS, PUBLIC_CODE, SUBSET_CODE, Implementation, PublicRun
from ..run.provenance import provenance

NONE = "none"  # nothing holds: an adversary who knows the seeds recomputes noise and secrets


def measure(cell: dict, log: Callable[[str], object] = print, device: str | None = None) -> dict:
    """The parts of a record; `guarantee` has epsilons at the claim's delta, noise scales over the clip."""
    code = cell.get("code", cell["method"])
    practice: Any = (PUBLIC_CODE | SUBSET_CODE)[code]
    log(f"{run_id(cell)}: noise by {practice.accountant}, then bounds")
    guarantee = {
        "source": practice.source,
        "claimed_accountant": practice.accountant,
        "noise_source": practice.noise_source,
        "as_it_is": NONE,
    }
    guarantee |= _information(cell) if code in SUBSET_CODE else _epsilon(cell, practice)
    return {
        "method": {"title": practice.title, "private": True, "order": 0},
        "guarantee": guarantee,
        "provenance": provenance(code, "cpu"),
    }


def _epsilon(cell: dict, practice: Implementation) -> dict[str, Any]:
    """A claim of epsilon, what the code gives, and this project's noise for the same claim."""
    settings = cell["settings"]
    claim, delta = float(cell["epsilon"]), settings["delta"]
    sizes = {name: settings[name] for name in ("dataset_size", "batch_size", "steps")}
    ours = Setting("gaussian", "poisson", "add_remove", **sizes, delta=delta)
    published = PublicRun(practice, claim, ours, settings["assumed_size"] or None)
    noise = published.noise_scale
    guarantee = {
        "claimed_epsilon": claim,
        "claimed_delta": delta,
        "sampling": practice.sampling,
        "batches_per_epoch": published.batches,
        "last_batch": published.last_batch,
        "divisor": DIVISORS[practice.divisor],
        "noise_scale": noise,
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
    return guarantee


def _information(cell: dict) -> dict[str, Any]:
    """A claim of mutual information with a secret subset, in nats, and the epsilon of one row added."""
    from ..privacy.sign_releases import SignReleases

    settings = cell["settings"]
    claim = settings.get("mutual_information", 0.0)
    releases = SignReleases(claim, settings["candidates"], settings["steps"])
    return {
        "claimed_information_nats": claim,
        "sampling": "full_batch",
        "adjacency": "add_remove",
        "epsilon_at_least": str(releases.epsilon_at_least()),  # JSON has no infinity
        "bound": "smallest pair",
        "information_at_least_nats": releases.information_at_least(),
        "information_at_most_nats": releases.information_at_most(),
    }
