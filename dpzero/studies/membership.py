"""Membership inference: an attacker sees a trained model, not its training set, and guesses its members.

The experiment. Each of a pool of distinct texts joins the training set of a run with probability 1/2. Some
texts carry a wrong label, so that memorisation shows. Each of K runs trains on its members. An attack scores
every text of every run and answers "member" above the threshold that 1 % of the other runs' non-members pass.

Why a claim limits it. Given all other members, a text in or out makes two neighbouring data sets
(add/remove), and the attack was fixed by the other runs. So TPR <= min over e of exp(e) FPR + delta(e), with
delta(e) from the accounted privacy loss distribution. The bound is concave in FPR, so it also holds for means
over texts and runs.

Two attacks: `loss`, the loss at the public base model minus the loss after training (Yeom et al. 2018, arXiv
1709.01604, with a reference), and `lira`. The methods are those of the sweeps. Keys are published and the texts
are public: every run can be replayed, and none is a private release.

The question of the SoK (Amit et al. 2024, arXiv 2403.08481): how much does the leak depend on what is tuned
(head, LoRA, all weights), with and without privacy? Its finding, read in its abstract, is that DP-SGD on LoRA
adapters protects best. Its tables were not read, and its models and texts are others. With the body frozen
(`tune: head`) features are computed once; other runs cost so much more that they are short.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UsageError, unknown
from ..language.data import assets, tasks
from ..language.models import model_catalogue
from ..plan.registry import card
from ..privacy import Setting
from ..run.provenance import method_digest, provenance
from . import membership_attacks
from .membership_runs import Method, Outcome, Pool, codes, draw_members, load_pool, outcome

FALSE_POSITIVE_RATE = 0.01
DELTA = 1e-5
MISLABELLED = 0.25  # fraction of the pool that gets a wrong label
USES = ("mezo", "fine_tuning", "dpzero")
TUNES = {"head": "head", "lora": "LoRA", "full": "all weights"}
TITLES = {"mezo": "MeZO", "fine_tuning": "AdamW", "dpzero": "DPZero", "dp_sgd": "DP-Adam"}
NAMES = {"fine_tuning": "adamw", "dp_sgd": "dp_adam"}  # where it is not that of the file
ADAMW: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-2}  # memorises the pool
DP_ADAM: dict[str, Any] = {"optimizer": "adam", "clip": 0.1}
TWO_POINT: dict[str, Any] = {"learning_rate": 3e-3, "smoothing": 1e-2}
PRIVATE = TWO_POINT | {"clip": 3.0}
HEADS: dict[str, dict[str, Any]] = {  # of the study of heads alone, a thousand steps
    "mezo": TWO_POINT,
    "fine_tuning": ADAMW,
    "dpzero": PRIVATE,
    "dp_sgd": DP_ADAM | {"learning_rate": 1e-2},
}
SHORT: dict[str, dict[str, dict[str, Any]]] = {  # of the comparison of tunings, some tens of steps
    "head": HEADS
    | {"mezo": TWO_POINT | {"learning_rate": 3e-2}, "dpzero": PRIVATE | {"learning_rate": 3e-2}},
    "lora": {
        "mezo": {"learning_rate": 1e-2, "smoothing": 1e-3},
        "fine_tuning": ADAMW | {"learning_rate": 5e-3},
        "dpzero": {"learning_rate": 1e-2, "smoothing": 1e-3, "clip": 3.0},
        "dp_sgd": DP_ADAM | {"learning_rate": 3e-3},
    },
    "full": {
        "mezo": {"learning_rate": 1e-4, "smoothing": 1e-3},
        "fine_tuning": ADAMW | {"learning_rate": 5e-4},
        "dpzero": {"learning_rate": 1e-4, "smoothing": 1e-3, "clip": 3.0},
        "dp_sgd": DP_ADAM | {"learning_rate": 1e-3, "clipping": "ghost"},
    },
}


def membership(
    task: str = "r8",
    model: str = "minilm",
    *,
    tunes: Sequence[str] = ("head",),
    uses: Sequence[str] = USES,
    pool_size: int = 400,
    runs: int = 48,
    steps: int = 1000,
    rate: float = 0.5,
    epsilons: Sequence[float] = (6.0, 2.0, 1.0),
    max_length: int = 0,
    dev_texts: int = 0,
    processes: int = 0,
    folder: Path | None = None,
    log: Callable[[str], object] = print,
) -> dict:
    """Attack the base model, and each method with each choice of trainable parameters.

    Args:
        tunes: keys of TUNES. With any but head alone, the settings are those of short runs.
        uses: method files, keys of HEADS; one of them without privacy.
        pool_size: number of distinct training texts.
        runs: of each method; all methods share members, batches and directions.
        rate: probability that a member is in a batch.
        epsilons: claims of each private method at DELTA.
        max_length: tokens of a text; 0: the task's.
        dev_texts: of the dev split, the first, for the accuracy; 0: all.
        processes: 0 for as many as there are cores.
        folder: of the runs' files, from which a study goes on; None keeps none.

    Returns:
        `rows`, one for each method, group of texts and attack; `methods`, each with its settings and what it
        learnt; the settings of the experiment; provenance. `seconds` is the processor time of the runs.

    Raises:
        UsageError: an unknown name, or a number out of range.
    """
    batch_size = max(1, round(rate * pool_size))
    try:
        setting = Setting("gaussian", "poisson", "add_remove", pool_size, batch_size, steps, DELTA)
        methods = _methods(setting, tunes, uses, epsilons)
    except ValueError as error:
        raise UsageError(f"membership: {error}") from error
    log(f"membership: the pool of {task}")
    sizes = {"max_length": max_length, "dev_texts": dev_texts}
    pools = {tune: load_pool(task, model, setting, MISLABELLED, seed=0, tune=tune, **sizes) for tune in tunes}
    pool, seeds = pools[tunes[0]], range(runs)
    outcomes = _run_all(pools, methods, seeds, processes, folder, log)
    members = np.array([draw_members(pool_size, seed) for seed in seeds])
    logits = {name: np.array([run.logits for run in its_runs]) for name, its_runs in outcomes.items()}
    everything = [run for its_runs in outcomes.values() for run in its_runs]
    return {
        "rows": list(_attack_all(pool, methods, logits, members)),
        "methods": [
            asdict(method)
            | {"dev_accuracy": float(np.mean([run.dev_accuracy for run in outcomes[method.name]]))}
            | _fraction_fitted(pool, logits[method.name], members)
            for method in methods
        ],
        "task": task,
        "model": model,
        "tune": "head" if tuple(tunes) == ("head",) else list(tunes),
        "pool": pool_size,
        "mislabelled": int(pool.mislabelled.sum()),
        "max_length": pool.identity["max_length"],
        "runs": runs,
        "steps": steps,
        "rate": setting.rate,
        "delta": DELTA,
        "false_positive_rate": FALSE_POSITIVE_RATE,
        "confidence": membership_attacks.CONFIDENCE,
        "accountant": setting.accountant,
        "attacker": f"sees the final weights and {runs - 1} other runs on the same pool, not the transcript",
        "noise_key": "published",
        "valid_release": False,
        "data": "public",
        "seconds": round(sum(run.seconds for run in everything), 1),
        "provenance": _provenance(task, model, methods) | {"code": codes(everything)},
    }


def _methods(
    setting: Setting, tunes: Sequence[str], uses: Sequence[str], epsilons: Sequence[float]
) -> list[Method]:
    """The base model, and each method file with each choice of parameters and, if it is private, each epsilon."""
    for kind, names, known in (("tune", tunes, TUNES), ("method of this study", uses, HEADS)):
        for name in names:
            if name not in known:
                raise UsageError(unknown(kind, name, known))
    if all(card(use).private for use in uses):
        raise UsageError("all methods are private, so no control is left: give one that is not")
    folder = assets.cache_folder() / "calibrations"
    scales = {e: setting.cached_noise_scale(e, folder) for e in epsilons}
    methods = [Method("base", "Base model", 0.0, tune=tunes[0])]
    for tune in tunes:
        for use in uses:
            name = NAMES.get(use, use) + (f"_{tune}" if tuple(tunes) != ("head",) else "")
            settings = SHORT[tune][use] if tuple(tunes) != ("head",) else HEADS[use]
            named = partial(Method, use=use, settings=settings, tune=tune)
            if not card(use).private:
                methods.append(named(name, TITLES[use], None))
                continue
            for e, scale in scales.items():
                methods.append(named(f"{name}_{e:g}", f"{TITLES[use]}, ε = {e:g}", e, noise_scale=scale))
    return methods


def _run_all(
    pools: dict[str, Pool],
    methods: list[Method],
    seeds: range,
    processes: int,
    folder: Path | None,
    log: Callable[[str], object],
) -> dict[str, list[Outcome]]:
    """The outcomes of each method, seed by seed."""
    jobs = [(method, seed) for seed in seeds for method in methods]
    results: list[Outcome] = []
    processes = processes or len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        apply: Callable = map
        if processes > 1:  # spawned: torch does not survive a fork; one thread each: the steps are small
            workers = get_context("spawn").Pool(processes, torch.set_num_threads, (1,))
            apply = stack.enter_context(workers).imap
        for result in apply(partial(outcome, pools, folder), jobs):
            results.append(result)
            if len(results) % len(methods) == 0:
                log(f"membership: {len(results)} of {len(jobs)} runs")
    return {method.name: results[i :: len(methods)] for i, method in enumerate(methods)}


def _attack_all(
    pool: Pool, methods: list[Method], logits: dict[str, NDArray], members: NDArray
) -> Iterator[dict]:
    """One row for each method, group of texts and attack, with the ceilings of the claim, if there is one.

    The control is the first method without privacy with members redrawn after training, whom no sound attack
    finds.
    """
    redrawn = np.array([draw_members(members.shape[1], seed, "control") for seed in range(len(members))])
    attacked = [(method, method.name, members) for method in methods]
    (real,) = [method for method in methods if method.epsilon is None][:1]
    control = Method("control", f"{real.title}, members redrawn", 0.0, tune=real.tune)
    attacked.insert(1, (control, real.name, redrawn))
    base_loss, _ = membership_attacks.loss_and_log_odds(logits["base"], pool.labels)
    for method, trained_as, its_members in attacked:
        loss, log_odds = membership_attacks.loss_and_log_odds(logits[trained_as], pool.labels)
        lira = membership_attacks.likelihood_ratio(log_odds, its_members)
        claim = method.claim(pool.setting)
        names = {"method": method.name, "title": method.title, "tune": method.tune, "epsilon": method.epsilon}
        for group, texts in pool.groups().items():
            for attack, scores in (("loss", base_loss - loss), ("lira", lira)):
                metrics = membership_attacks.measure(
                    scores[:, texts], its_members[:, texts], FALSE_POSITIVE_RATE
                )
                limits = claim.limits(metrics, FALSE_POSITIVE_RATE) if claim else {}
                yield names | {"trained_as": trained_as, "texts": group, "attack": attack} | metrics | limits


def _fraction_fitted(pool: Pool, logits: NDArray, members: NDArray) -> dict[str, float]:
    """The fraction of members to which the trained model gives the label that they were trained with."""
    fitted = logits.argmax(-1) == pool.labels
    return {f"fit_{name}": float(fitted[members & texts].mean()) for name, texts in pool.groups().items()}


def _provenance(task: str, model: str, methods: list[Method]) -> dict:
    return {
        **provenance("dpzero", "cpu"),
        "method_code": {use: method_digest(use) for use in sorted({m.use for m in methods if m.use})},
        "model": {"name": model, "sha256": model_catalogue.digest(model)},
        "data": {"name": task, "sha256": tasks.digest(task)},
    }
