"""Membership inference: an attacker sees a trained model, not its training set, and guesses its members.

The experiment. Each of a pool of distinct texts joins the training set of a run with probability 1/2. Some
texts carry a wrong label, so that memorisation shows. Each of K runs trains on its members. An attack scores
every text of every run and answers "member" above the threshold that 1 % of the other runs' non-members pass.

Why a claim limits it. Given all other members, a text in or out makes two neighbouring data sets
(add/remove), and the attack was fixed by the other runs. So TPR <= min over e of exp(e) FPR + delta(e), with
delta(e) from the accounted privacy loss distribution. The bound is concave in FPR, so it also holds for means
over texts and runs.

Two attacks: `loss`, the loss at the public base model minus the loss after training (Yeom et al. 2018, arXiv
1709.01604, with a reference), and `lira`. The body is frozen (`tune: head`), so its features are computed
once. The methods are those of the sweeps. Keys are published and the texts are public: every run can be
replayed, and none is a private release.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UsageError
from ..language.data import assets, tasks
from ..language.models import encoding, model_catalogue, text_classifier
from ..language.models.caches import features
from ..plan.registry import card
from ..privacy import RunKey, Setting, StandInBudget
from ..run.provenance import method_digest, provenance
from . import membership_attacks

FALSE_POSITIVE_RATE = 0.01
DELTA = 1e-5
MISLABELLED = 0.25  # fraction of the pool that gets a wrong label
RATE = 0.5  # probability that a member is in a batch
ADAMW = {"optimizer": "adamw", "learning_rate": 1e-2}  # memorises the pool
TWO_POINT = {"learning_rate": 3e-3, "smoothing": 1e-2}
PRIVATE = TWO_POINT | {"clip": 3.0}


@dataclass(frozen=True)
class Pool:
    """The texts that may be members, as features, and what all runs share.

    Args:
        features, labels: float32 [N, H] and int64 [N].
        mislabelled: bool [N], texts under a wrong label.
        dev_features, dev_labels: of the dev split.
        weight, bias: [C, H] and [C], the head before training.
        setting: of the Poisson sampler over the pool; restricted to the members it samples them at the same
            rate.
    """

    features: NDArray
    labels: NDArray
    mislabelled: NDArray
    dev_features: NDArray
    dev_labels: NDArray
    weight: NDArray
    bias: NDArray
    setting: Setting

    def groups(self) -> dict[str, NDArray]:
        """Masks [N] of the texts that are reported together."""
        everything = np.ones_like(self.mislabelled)
        masks = {"natural": ~self.mislabelled, "mislabelled": self.mislabelled, "all": everything}
        return {name: mask for name, mask in masks.items() if mask.any()}


@dataclass(frozen=True)
class Method:
    """A method under attack.

    Args:
        epsilon: its claim; None without one.
        use: its file; None leaves the model untrained.
        noise_scale: of a private method.
    """

    name: str
    title: str
    epsilon: float | None
    use: str | None = None
    settings: dict = field(default_factory=dict)
    noise_scale: float | None = None

    def claim(self, setting: Setting) -> membership_attacks.Claim | None:
        if self.epsilon is None:
            return None
        if self.noise_scale is None:
            return membership_attacks.NO_LEARNING
        return membership_attacks.Claim.accounted(self.epsilon, setting, self.noise_scale)


class FeatureLoss:
    """Cross entropy of each text from its features. A batch is an array of indices into the pool."""

    def __init__(self, features: NDArray, labels: NDArray) -> None:
        self.features, self.labels = torch.from_numpy(features), torch.from_numpy(labels)

    def parts(self, batch: NDArray) -> Iterator[NDArray]:
        yield batch

    def __call__(self, head: nn.Module, batch: NDArray) -> Tensor:
        rows = torch.from_numpy(batch)
        return nn.functional.cross_entropy(head(self.features[rows]), self.labels[rows], reduction="none")


# -- the pool ------------------------------------------------------------------------------------------------


def load_pool(task_name: str, model_name: str, setting: Setting, mislabelled: float, seed: int) -> Pool:
    """The first distinct training texts; a random fraction `mislabelled` of them gets a wrong label."""
    task = tasks.load(task_name)
    splits = encoding.encode(task, model_name, task.max_length)
    model = text_classifier.load(model_name, task, "head", seed)
    texts = splits["train"][first_distinct(splits["train"], setting.dataset_size)]
    stream = RunKey.published(seed).stream("mislabelled")
    wrong = np.argsort(stream.words(len(texts), 0), kind="stable") < round(mislabelled * len(texts))
    shift = 1 + (stream.uniforms(len(texts), 1) * (len(task.labels) - 1)).astype(np.int64)
    return Pool(
        features=features(model, texts),
        labels=np.where(wrong, (texts.labels + shift) % len(task.labels), texts.labels),
        mislabelled=wrong,
        dev_features=features(model, splits["dev"]),
        dev_labels=splits["dev"].labels,
        weight=model.head.weight.detach().numpy(),
        bias=model.head.bias.detach().numpy(),
        setting=setting,
    )


def first_distinct(texts: encoding.Examples, count: int) -> NDArray[np.int64]:
    """Indices of the first `count` texts with different tokens. Raises UsageError if there are fewer."""
    first: dict[bytes, int] = {}
    for i in range(len(texts)):
        first.setdefault(texts.ids(i).tobytes(), i)
    if len(first) < count:
        raise UsageError(
            f"the pool is to hold {count} distinct training texts, of {len(first)}: make it smaller"
        )
    return np.array(list(first.values())[:count])


def draw_members(pool_size: int, seed: int, purpose: str = "members") -> NDArray[np.bool_]:
    """Mask [N] of the texts in the training set of the run with this seed; the same for all methods."""
    return RunKey.published(seed).stream(purpose).uniforms(pool_size, 0) < 0.5


# -- the runs ------------------------------------------------------------------------------------------------


def train_run(pool: Pool, job: tuple[Method, int]) -> tuple[NDArray, float]:
    """One run of a (method, seed): the logits of the pool, float32 [N, C], and the accuracy on dev."""
    method, seed = job
    head = nn.Linear(*pool.weight.shape[::-1])
    head.load_state_dict({"weight": torch.tensor(pool.weight), "bias": torch.tensor(pool.bias)})
    if method.use:
        _train(head, pool, method, seed)
    with torch.no_grad():
        logits, dev = (head(torch.from_numpy(f)).numpy() for f in (pool.features, pool.dev_features))
    return logits, float((dev.argmax(1) == pool.dev_labels).mean())


def _train(head: nn.Linear, pool: Pool, method: Method, seed: int) -> None:
    setting, method_card = pool.setting, card(method.use or "")
    # a stand-in budget takes the members among the texts that it drew
    budget = StandInBudget(setting, method.noise_scale or 0.0, RunKey.published(seed))
    loss, members = FeatureLoss(pool.features, pool.labels), draw_members(setting.dataset_size, seed)
    budget_or_size = budget if method_card.private else setting.batch_size
    optimizer = method_card.load()(head, loss, budget_or_size, seed=seed, **method.settings)
    for step in range(setting.steps):
        drawn = budget.sampler.batch(step)
        optimizer.step(drawn[members[drawn]])


def _train_all(
    pool: Pool, methods: list[Method], seeds: range, processes: int, log: Callable[[str], object]
) -> tuple[dict[str, NDArray], dict[str, float]]:
    """The logits [K, N, C] and the mean dev accuracy of each method."""
    jobs = [(method, seed) for seed in seeds for method in methods]
    results: list[tuple[NDArray, float]] = []
    processes = processes or len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        apply: Callable = map
        if processes > 1:  # spawned: torch does not survive a fork; one thread each: the steps are small
            workers = get_context("spawn").Pool(processes, torch.set_num_threads, (1,))
            apply = stack.enter_context(workers).imap
        for result in apply(partial(train_run, pool), jobs):
            results.append(result)
            if len(results) % len(methods) == 0:
                log(f"membership: {len(results)} of {len(jobs)} runs")
    by_method = {method.name: results[i :: len(methods)] for i, method in enumerate(methods)}
    logits = {name: np.array([run_logits for run_logits, _ in runs]) for name, runs in by_method.items()}
    return logits, {name: float(np.mean([a for _, a in runs])) for name, runs in by_method.items()}


# -- the experiment ------------------------------------------------------------------------------------------


def membership(
    task: str = "r8",
    model: str = "minilm",
    *,
    pool_size: int = 400,
    runs: int = 48,
    steps: int = 1000,
    epsilons: Sequence[float] = (6.0, 2.0, 1.0),
    processes: int = 0,
    log: Callable[[str], object] = print,
) -> dict:
    """Attack the base model, MeZO, AdamW, and DPZero at each epsilon.

    Args:
        pool_size: number of distinct training texts.
        runs: of each method; all methods share members, batches and directions.
        epsilons: claims of DPZero at DELTA.
        processes: 0 for as many as there are cores.

    Returns:
        `rows`, one for each method, group of texts and attack; `methods`, each with its settings and what it
        learnt; the settings of the experiment; provenance.

    Raises:
        UsageError: an unknown task or model, or a number out of range.
    """
    start = time.perf_counter()
    batch_size = round(RATE * pool_size)
    setting = Setting("gaussian", "poisson", "add_remove", pool_size, batch_size, steps, DELTA)
    try:
        methods = _methods(setting, epsilons)
    except ValueError as error:
        raise UsageError(f"membership: {error}") from error
    log(f"membership: features of {task}")
    pool, seeds = load_pool(task, model, setting, MISLABELLED, seed=0), range(runs)
    logits, accuracies = _train_all(pool, methods, seeds, processes, log)
    members = np.array([draw_members(pool_size, seed) for seed in seeds])
    return {
        "rows": list(_attack_all(pool, methods, logits, members)),
        "methods": [
            asdict(method)
            | {"dev_accuracy": accuracies[method.name]}
            | _fraction_fitted(pool, logits[method.name], members)
            for method in methods
        ],
        "task": task,
        "model": model,
        "tune": "head",
        "pool": pool_size,
        "mislabelled": int(pool.mislabelled.sum()),
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
        "seconds": round(time.perf_counter() - start, 1),
        "provenance": _provenance(task, model, methods),
    }


def _methods(setting: Setting, epsilons: Sequence[float]) -> list[Method]:
    folder = assets.cache_folder() / "calibrations"
    methods = [
        Method("base", "Base model", 0.0),
        Method("mezo", "MeZO", None, "mezo", TWO_POINT),
        Method("adamw", "AdamW", None, "fine_tuning", ADAMW),
    ]
    for e in epsilons:
        scale = setting.cached_noise_scale(e, folder)
        methods.append(Method(f"dpzero_{e:g}", f"DPZero, ε = {e:g}", e, "dpzero", PRIVATE, scale))
    return methods


def _attack_all(
    pool: Pool, methods: list[Method], logits: dict[str, NDArray], members: NDArray
) -> Iterator[dict]:
    """One row for each method, group of texts and attack, with the ceiling of the claim, if there is one.

    The control has members redrawn after training, whom no sound attack finds.
    """
    redrawn = np.array([draw_members(members.shape[1], seed, "control") for seed in range(len(members))])
    attacked = [(method, logits[method.name], members) for method in methods]
    attacked.insert(1, (Method("control", "MeZO, members redrawn", 0.0), logits["mezo"], redrawn))
    base_loss, _ = membership_attacks.loss_and_log_odds(logits["base"], pool.labels)
    for method, its_logits, its_members in attacked:
        loss, log_odds = membership_attacks.loss_and_log_odds(its_logits, pool.labels)
        lira = membership_attacks.likelihood_ratio(log_odds, its_members)
        claim = method.claim(pool.setting)
        names = {"method": method.name, "title": method.title, "epsilon": method.epsilon}
        for group, texts in pool.groups().items():
            for attack, scores in (("loss", base_loss - loss), ("lira", lira)):
                metrics = membership_attacks.measure(
                    scores[:, texts], its_members[:, texts], FALSE_POSITIVE_RATE
                )
                limits = claim.limits(metrics, FALSE_POSITIVE_RATE) if claim else {}
                yield names | {"texts": group, "attack": attack} | metrics | limits


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
