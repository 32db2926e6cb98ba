"""Membership inference: who sees a trained model, and not its training set, guesses which texts were in it.

The game. From a pool of distinct texts each joins a run's training set with probability 1/2. Some carry a wrong label, so that
memorising shows. Each of K runs trains on its members; an attack scores every text of every run, and says "member" above the
threshold that lets 1 % of the other runs' non-members pass.

Why a claim caps it. All other members given, the two cases of one text are neighbours under add/remove, and the attack was
fixed by the other runs: TPR <= min over e of exp(e) FPR + delta(e), delta(e) from the accounted privacy loss distribution.
The bound is concave in FPR, so it holds for the means over texts and runs, too.

Two attacks: `loss`, the loss at the public base model less the loss after training (Yeom et al. 2018, arXiv 1709.01604, with a
reference), and `lira`. The body is frozen (`tune: head`), so its features are computed once; the methods are the benchmark's own.
Keys are published and the texts are public: all of it replays, and nothing here is a private release.
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
from torch import nn

from ..errors import UsageError
from ..language.data import assets, encoding, tasks
from ..language.models import models
from ..language.models.feature_cache import features
from ..plan.registry import card
from ..privacy import Rehearsal, RunKey, Setting
from ..privacy.sampling import SAMPLERS
from ..run.provenance import method_digest, provenance
from . import membership_attacks
from .head_features import FeatureLoss, distinct

FALSE_POSITIVE_RATE = 0.01
ADAMW = {"optimizer": "adamw", "learning_rate": 1e-2}  # learns the pool by heart
LOG_SECONDS = 10


@dataclass(frozen=True)
class World:
    """What all runs share. `setting` is the Poisson sampler's over the pool: thinned to members, it is theirs at the same rate."""

    features: NDArray  # float32 [N, H], of the pool
    labels: NDArray  # int64 [N]
    mislabelled: NDArray  # bool [N]
    dev_features: NDArray
    dev_labels: NDArray
    weight: NDArray  # [C, H], of the head before training
    bias: NDArray  # [C]
    setting: Setting

    def groups(self) -> dict[str, NDArray]:
        """Masks [N] of the texts that are reported together."""
        everything = np.ones_like(self.mislabelled)
        masks = {"natural": ~self.mislabelled, "mislabelled": self.mislabelled, "all": everything}
        return {name: mask for name, mask in masks.items() if mask.any()}


@dataclass(frozen=True)
class Contestant:
    """A method with its settings. `use` is its file; without one the model stays as it is."""

    name: str
    title: str
    epsilon: float | None  # None where nothing is claimed
    use: str | None = None
    settings: dict = field(default_factory=dict)
    noise_scale: float | None = None

    def claim(self, setting: Setting) -> membership_attacks.Claim | None:
        if self.noise_scale is None:
            return membership_attacks.NOTHING_LEARNT if self.epsilon == 0 else None
        return membership_attacks.Claim.accounted(self.epsilon, setting, self.noise_scale)


# -- what is played with -----------------------------------------------------------------------------------------------


def make_world(task_name: str, model_name: str, setting: Setting, wrong: float, seed: int) -> World:
    """The first distinct texts of train, of which a fraction `wrong`, drawn at random, gets another label than its own."""
    task = tasks.load(task_name)
    splits = encoding.encode(task_name, model_name, task.max_length)
    model = models.load(model_name, task, "head", seed)
    pool = splits["train"][distinct(splits["train"], setting.dataset_size)]
    stream = RunKey.published(seed).stream("mislabelled")
    mislabelled = np.argsort(stream.words(len(pool), 0), kind="stable") < round(wrong * len(pool))
    shift = 1 + (stream.uniforms(len(pool), 1) * (len(task.labels) - 1)).astype(np.int64)
    return World(
        features=features(model, pool),
        labels=np.where(mislabelled, (pool.labels + shift) % len(task.labels), pool.labels),
        mislabelled=mislabelled,
        dev_features=features(model, splits["dev"]),
        dev_labels=splits["dev"].labels,
        weight=model.head.weight.detach().numpy(),
        bias=model.head.bias.detach().numpy(),
        setting=setting,
    )


def members(pool: int, seed: int, purpose: str = "members") -> NDArray[np.bool_]:
    """Which of the pool are in the training set of the run with this seed, whatever its method."""
    return RunKey.published(seed).stream(purpose).uniforms(pool, 0) < 0.5


# -- the runs ----------------------------------------------------------------------------------------------------------


def play(world: World, job: tuple[Contestant, int]) -> tuple[NDArray, float]:
    """One run: a contestant and a seed. Returns the logits of the pool, float32 [N, C], and the accuracy on dev."""
    contestant, seed = job
    head = nn.Linear(*world.weight.shape[::-1])
    head.load_state_dict({"weight": torch.tensor(world.weight), "bias": torch.tensor(world.bias)})
    if contestant.use:
        _train(head, world, contestant, seed)
    with torch.no_grad():
        pool, dev = (head(torch.from_numpy(f)).numpy() for f in (world.features, world.dev_features))
    return pool, float((dev.argmax(1) == world.dev_labels).mean())


def _train(head: nn.Linear, world: World, contestant: Contestant, seed: int) -> None:
    setting, key, method = world.setting, RunKey.published(seed), card(contestant.use)
    if method.private:
        share = Rehearsal(
            setting, contestant.noise_scale, key
        )  # a world without some members: batches are parts of those drawn
        sampler = share.sampler
    else:
        share = setting.batch_size
        sampler = SAMPLERS[setting.sampling](setting.dataset_size, share, key.stream("sampling"))
    loss, inside = FeatureLoss(world.features, world.labels), members(setting.dataset_size, seed)
    trainer = method.load()(head, loss, share, seed=seed, **contestant.settings)
    for step in range(setting.steps):
        drawn = sampler.batch(step)
        trainer.step(drawn[inside[drawn]])


def _play_all(
    world: World, contestants: list[Contestant], seeds: range, processes: int, log: Callable[[str], object]
) -> tuple[dict[str, NDArray], dict[str, float]]:
    """Of each contestant the logits [K, N, C], and the mean accuracy on dev."""
    jobs = [(contestant, seed) for seed in seeds for contestant in contestants]
    logits, accuracies = ({contestant.name: [] for contestant in contestants} for _ in range(2))
    processes = processes or len(os.sched_getaffinity(0))
    start = last = time.perf_counter()
    with ExitStack() as stack:
        apply = map
        if processes > 1:  # spawned: torch does not survive a fork; one thread each: the steps are small
            workers = get_context("spawn").Pool(processes, torch.set_num_threads, (1,))
            apply = stack.enter_context(workers).imap
        for done, (pool, accuracy) in enumerate(apply(partial(play, world), jobs), 1):
            name = jobs[done - 1][0].name
            logits[name].append(pool)
            accuracies[name].append(accuracy)
            if (now := time.perf_counter()) - last > LOG_SECONDS or done == len(jobs):
                last, left = now, (now - start) / done * (len(jobs) - done)
                log(f"membership: {done} of {len(jobs)} runs, about {left:.0f} s left")
    return {k: np.array(v) for k, v in logits.items()}, {k: float(np.mean(v)) for k, v in accuracies.items()}


# -- the experiment ----------------------------------------------------------------------------------------------------


def membership(
    task: str = "r8",
    model: str = "minilm",
    *,
    pool: int = 400,
    mislabelled: float = 0.25,
    runs: int = 48,
    steps: int = 1000,
    rate: float = 0.5,
    epsilons: Sequence[float] = (6.0, 2.0, 1.0),
    delta: float = 1e-5,
    learning_rate: float = 3e-3,
    smoothing: float = 1e-2,
    clip: float = 3.0,
    seed: int = 0,
    processes: int = 0,
    log: Callable[[str], object] = print,
) -> dict:
    """Play the game with the untouched base model, MeZO, AdamW, and DPZero at each epsilon.

    Args:
        pool: distinct training texts; `mislabelled`: the fraction of them under a wrong label.
        runs: of each method; the same members, batches and directions for all methods.
        rate: probability with which a member is in a batch.
        epsilons: claimed by DPZero at `delta`, with `clip`; `learning_rate` and `smoothing` are those of MeZO, too.
        processes: 0 for as many as there are cores.

    Returns:
        `rows`, one a method, group of texts and attack; `methods`, what each was and what it learnt; settings; provenance.

    Raises:
        UsageError: an unknown task or model, a number that makes no sense.
    """
    start = time.perf_counter()
    if not 0 <= mislabelled <= 1:
        raise UsageError(f"mislabelled is {mislabelled}: it must be a fraction of the pool, from 0 to 1")
    try:
        setting = Setting("gaussian", "poisson", "add_remove", pool, round(rate * pool), steps, delta)
        folder = assets.cache_folder() / "calibrations"
        noise = {epsilon: setting.cached_noise_scale(epsilon, folder) for epsilon in epsilons}
    except ValueError as error:
        raise UsageError(f"membership: {error}") from error
    contestants = _contestants(noise, {"learning_rate": learning_rate, "smoothing": smoothing}, clip)
    log(f"membership: features of {task}")
    world, seeds = make_world(task, model, setting, mislabelled, seed), range(seed, seed + runs)
    logits, accuracies = _play_all(world, contestants, seeds, processes, log)
    inside = np.array([members(pool, s) for s in seeds])
    played = [(contestant, contestant.name, inside) for contestant in contestants]
    # of members that nobody trained on an attack finds 1 %, or it cheats
    control = Contestant("control", "MeZO, members redrawn", 0.0)
    played.insert(1, (control, "mezo", np.array([members(pool, s, "control") for s in seeds])))
    rows = [row for c, name, truth in played for row in _rows(c, world, logits[name], logits["base"], truth)]
    learnt = [
        {**asdict(c), "dev_accuracy": accuracies[c.name], **_fits(world, logits[c.name], inside)}
        for c in contestants
    ]
    files = sorted({c.use for c in contestants if c.use})
    return {
        "rows": rows,
        "methods": learnt,
        "task": task,
        "model": model,
        "tune": "head",
        "pool": pool,
        "mislabelled": int(world.mislabelled.sum()),
        "runs": runs,
        "steps": steps,
        "rate": setting.rate,
        "delta": delta,
        "false_positive_rate": FALSE_POSITIVE_RATE,
        "confidence": membership_attacks.CONFIDENCE,
        "accountant": setting.accountant,
        "attacker": f"sees the final weights and {runs - 1} other runs on the same pool, not the transcript",
        "noise_key": "published",
        "valid_release": False,
        "data": "public",
        "seconds": round(time.perf_counter() - start, 1),
        "provenance": {
            **provenance("dpzero", "cpu"),
            "method_code": {file: method_digest(file) for file in files},
            "model": {"name": model, "sha256": models.digest(model)},
            "data": {"name": task, "sha256": tasks.digest(task)},
        },
    }


def _contestants(noise: dict[float, float], two_point: dict, clip: float) -> list[Contestant]:
    first = [
        Contestant("base", "Base model", 0.0),
        Contestant("mezo", "MeZO", None, "mezo", two_point),
        Contestant("adamw", "AdamW", None, "fine_tuning", ADAMW),
    ]
    clipped = {**two_point, "clip": clip}
    return first + [
        Contestant(f"dpzero_{e:g}", f"DPZero, ε = {e:g}", e, "dpzero", clipped, scale)
        for e, scale in noise.items()
    ]


def _fits(world: World, logits: NDArray, inside: NDArray) -> dict[str, float]:
    """The share of members to which the trained model gives the label that they were trained with."""
    right = logits.argmax(-1) == world.labels
    return {f"fit_{name}": float(right[inside & texts].mean()) for name, texts in world.groups().items()}


def _rows(
    contestant: Contestant, world: World, logits: NDArray, base: NDArray, inside: NDArray
) -> Iterator[dict]:
    """One a group of texts and attack, with the ceiling of the claim, if there is one."""
    loss, log_odds = membership_attacks.confidence(logits, world.labels)
    base_loss, _ = membership_attacks.confidence(base, world.labels)
    scores = {"loss": base_loss - loss, "lira": membership_attacks.likelihood_ratio(log_odds, inside)}
    claim = contestant.claim(world.setting)
    for group, texts in world.groups().items():
        for attack, found in scores.items():
            row = {"method": contestant.name, "title": contestant.title, "epsilon": contestant.epsilon}
            row |= {"texts": group, "attack": attack}
            row |= membership_attacks.measured(found[:, texts], inside[:, texts], FALSE_POSITIVE_RATE)
            yield row | (claim.limits(row, FALSE_POSITIVE_RATE) if claim else {})
