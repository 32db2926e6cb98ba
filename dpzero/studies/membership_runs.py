"""The runs that membership inference attacks: a pool of texts, and models trained on random halves of it.

A run is deterministic, and what it leaves is kept in a file of its own. So a study that was interrupted goes on
where it stopped. The name of the file holds a digest of all that the run depends on, except the package's shared
code, whose digest is in the file.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UsageError
from ..files import write_whole
from ..language.data import tasks
from ..language.models import caches, encoding, losses, model_catalogue, text_classifier
from ..plan.registry import card
from ..privacy import RunKey, Setting, StandInBudget
from ..run.provenance import core_digest, method_digest
from .membership_attacks import NO_LEARNING, Claim

FORMAT = 1  # raise it when the same pool, method and seed give another outcome
LOSS = losses.CrossEntropy(token_budget=2048)  # remembers its trials on each model


@dataclass(frozen=True)
class Pool:
    """The texts that may be members, the model before training, and what all runs share.

    Args:
        model: as it starts; for `tune` head the head alone, whose texts are features.
        texts: with the labels that runs train on.
        mislabelled: bool [N], texts under a wrong label.
        dev: texts of the dev split.
        setting: of the Poisson sampler over the pool; restricted to the members it samples them at the same
            rate.
        identity: names and digests of all of this.
    """

    model: nn.Module
    texts: caches.Features | encoding.Examples
    mislabelled: NDArray[np.bool_]
    dev: caches.Features | encoding.Examples
    setting: Setting
    identity: dict[str, Any]

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.asarray(self.texts.labels)

    def groups(self) -> dict[str, NDArray[np.bool_]]:
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
        tune: the parameters that it trains.
    """

    name: str
    title: str
    epsilon: float | None
    use: str | None = None
    settings: dict = field(default_factory=dict)
    noise_scale: float | None = None
    tune: str = "head"

    def claim(self, setting: Setting) -> Claim | None:
        if self.epsilon is None:
            return None
        if self.noise_scale is None:
            return NO_LEARNING
        return Claim.accounted(self.epsilon, setting, self.noise_scale)


class Outcome(NamedTuple):
    """Of one run: the logits of the pool, float32 [N, C], accuracy on dev, processor time, digest of the code."""

    logits: NDArray[np.float32]
    dev_accuracy: float
    seconds: float
    code: str


# -- the pool ------------------------------------------------------------------------------------------------


def load_pool(
    task_name: str,
    model_name: str,
    setting: Setting,
    mislabelled: float,
    seed: int,
    *,
    tune: str = "head",
    max_length: int = 0,
    dev_texts: int = 0,
) -> Pool:
    """The first distinct training texts; a random fraction `mislabelled` of them gets a wrong label.

    Args:
        setting: its dataset_size is the number of texts.
        tune: the trainable parameters.
        max_length: tokens of a text; 0: the task's.
        dev_texts: of the dev split, the first; 0: all.

    Raises:
        UsageError: too few texts, or a model that scores text in place of classifying it.
    """
    task = tasks.load(task_name)
    if encoding.scores_text(model_name, task):
        raise UsageError(f"membership: {model_name} scores the answers of {task_name}: give a classifier")
    length = max_length or task.max_length
    splits = encoding.encode(task, model_name, length)
    texts = splits["train"][first_distinct(splits["train"], setting.dataset_size)]
    stream = RunKey.published(seed).stream("mislabelled")
    wrong = np.argsort(stream.words(len(texts), 0), kind="stable") < round(mislabelled * len(texts))
    shift = 1 + (stream.uniforms(len(texts), 1) * (len(task.labels) - 1)).astype(np.int64)
    labels = np.where(wrong, (texts.labels + shift) % len(task.labels), texts.labels)
    dev = splits["dev"][np.arange(min(dev_texts or len(splits["dev"]), len(splits["dev"])))]
    model: nn.Module = text_classifier.load(model_name, task, tune, seed)
    rows: list[Any] = [encoding.Examples(texts.tokens, texts.offsets, labels), dev]
    if tune == "head":
        rows = [caches.Features.from_arrays(caches.features(model, each), each.labels) for each in rows]
        model = text_classifier.HeadAlone(model.head)  # type: ignore[arg-type]
    identity = {
        **{"format": FORMAT, "task": task_name, "data": tasks.digest(task_name), "max_length": length},
        **{"model": model_name, "weights": model_catalogue.digest(model_name), "tune": tune, "seed": seed},
        **{"mislabelled": mislabelled, "dev": len(dev), "setting": asdict(setting)},
    }
    return Pool(model, rows[0], wrong, rows[1], setting, identity)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


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


# -- a run ---------------------------------------------------------------------------------------------------


def train_run(pool: Pool, method: Method, seed: int) -> tuple[NDArray[np.float32], float]:
    """Trains on the members of this seed. Returns the logits of the pool, [N, C], and the accuracy on dev."""
    model = copy.deepcopy(pool.model)  # worker processes share the pool's memory
    if method.use:
        train(model, LOSS, pool.texts, pool.setting, method, seed)
    return logits_of(model, pool.texts), LOSS.evaluate(model, pool.dev)["accuracy"]


def train(model: nn.Module, loss: Any, texts: Any, setting: Setting, method: Method, seed: int) -> None:
    """Takes the steps of a method on the members of this seed among the texts.

    A stand-in budget takes the members among the texts that it drew; `Method.claim` has the epsilon that the
    sampler and the noise give.
    """
    method_card = card(method.use or "")
    budget = StandInBudget(setting, method.noise_scale or 0.0, RunKey.published(seed))
    budget_or_size = budget if method_card.private else setting.batch_size
    optimizer = method_card.load()(model, loss, budget_or_size, seed=seed, **method.settings)
    members = draw_members(setting.dataset_size, seed)
    for step in range(setting.steps):
        drawn = budget.sampler.batch(step)
        optimizer.step(texts[drawn[members[drawn]]])


@torch.no_grad()
def logits_of(model: nn.Module, texts: Any) -> NDArray[np.float32]:
    """The logits of each text, float32 [N, C]."""
    rows: list[Tensor] = [torch.empty(0)] * len(texts)
    for order, part in texts.parts(LOSS.token_budget):
        ids, mask, _ = part.padded(torch.device("cpu"))
        for row, logits in zip(order, model(ids, mask), strict=True):
            rows[row] = logits
    return torch.stack(rows).numpy()


# -- runs on disk --------------------------------------------------------------------------------------------


def outcome(pools: dict[str, Pool], folder: Path | None, job: tuple[Method, int]) -> Outcome:
    """The outcome of a (method, seed): from its file in the folder if it is there, else by training."""
    method, seed = job
    pool = pools[method.tune]

    def run() -> dict[str, Any]:
        logits, accuracy = train_run(pool, method, seed)
        return {"logits": logits, "dev_accuracy": accuracy}

    values = kept(run_file(folder, pool.identity, method, seed), run)
    return Outcome(values["logits"], *(values[name].item() for name in Outcome._fields[1:]))


def kept(path: Path | None, run: Callable[[], dict[str, Any]]) -> dict[str, NDArray]:
    """What a run leaves, with its processor time and the digest of the code: from its file if it is there."""
    if path and path.exists():
        with np.load(path) as file:
            return dict(file)
    start = time.process_time()
    values = run() | {"seconds": time.process_time() - start, "code": _code()}
    if path:
        content = BytesIO()
        np.savez(content, **values)
        write_whole(path, content.getvalue())
    return {name: np.asarray(value) for name, value in values.items()}


def run_file(folder: Path | None, identity: dict[str, Any], method: Method, seed: int) -> Path | None:
    """The file of a run; its name has the digest of the run's pool and method without the package's shared code."""
    if folder is None:
        return None
    code = method_digest(method.use) if method.use else ""
    values = [identity, method.use, method.settings, method.noise_scale, code]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"{method.name}-{digest}" / f"seed-{seed}.npz"


@cache
def _code() -> str:
    """The digest of the shared code when this process began its first run."""
    return core_digest()


def codes(outcomes: Sequence[Outcome]) -> str:
    """The digests of the shared code that these runs had, joined."""
    return " and ".join(sorted({each.code for each in outcomes}))
