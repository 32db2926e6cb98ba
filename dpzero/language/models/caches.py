"""Caches of forward passes: the features of a frozen backbone, and the keys and values of a shared prefix.

With the head's start also in a cache, a run that trains the head alone loads no backbone, and not transformers.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...files import replacing
from ..data import assets, tasks
from ..data.tasks import Task
from . import model_catalogue
from .batch_invariance import Bucket
from .encoding import Examples

# -- features -----------------------------------------------------------------------------------------------

TOKEN_BUDGET = 4096  # of a micro-batch
FORMAT = 1  # raise it when the same model and texts give other features


@dataclass(frozen=True)
class Features:
    """Features of n texts and their labels, in place of `Examples`: a row counts as one token.

    They are in memory of torch's, on whose alignment the last bits of a matrix product may depend.
    """

    values: Tensor  # float32 [n, H]
    labels: Tensor  # int64 [n]
    any_rows: ClassVar[bool] = True  # a head alone is quick: one pass, whatever the number of rows

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_arrays(cls, values: NDArray[np.float32], labels: NDArray[np.int64]) -> Features:
        """A copy of arrays [n, H] and [n]."""
        return cls(torch.from_numpy(values).clone(), torch.from_numpy(labels).clone())

    def __getitem__(self, indices: NDArray) -> Features:
        rows = torch.from_numpy(np.asarray(indices, np.int64))
        return Features(self.values[rows], self.labels[rows])

    def parts(self, token_budget: int) -> Iterator[tuple[NDArray[np.int64], Features]]:
        """(positions, features) of micro-batches."""
        for start in range(0, len(self), token_budget):
            order = np.arange(start, min(len(self), start + token_budget))
            yield order, self[order]

    def buckets(self, model: nn.Module) -> list[Bucket]:
        return [(1, False)] * len(self)

    def stand_ins(self, model: nn.Module, buckets: Sequence[Bucket]) -> Features:
        values = np.asarray(np.random.default_rng(0).normal(size=self.values.shape[1]), np.float32)
        return Features.from_arrays(np.tile(values, (len(buckets), 1)), np.zeros(len(buckets), np.int64))

    def padded(self, device: torch.device, length: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Values [n, H], a mask of ones [n, 1], labels [n]."""
        return self.values.to(device), torch.ones(len(self), 1), self.labels.to(device)


def trains_on_features(texts: Any, settings: Mapping[str, Any]) -> bool:
    """Whether a run can train on the features of texts: the head alone of a classifier, in float32, without dropout."""
    plain = settings["compute"] == "float32" and not settings.get("dropout")
    return settings["tune"] == "head" and plain and isinstance(texts, Examples)


def stand_in_features(model: Any, size: int) -> Features:
    """Features that say nothing about private texts."""
    return Features(torch.zeros(size, model.head.in_features), torch.zeros(size, dtype=torch.int64))


def read_features(name: str, load: Callable[[], Any], texts: Examples, seed: int, device: str) -> Features:
    """The features of texts, from the cache if they are there.

    Args:
        name: of models.yaml.
        load: gives the `Classifier`; called only for what the cache does not hold.
        texts: as the model reads them.
        seed: of random weights.
        device: of the model, or several with commas between.
    """
    values = read_array(name, lambda: features(load(), texts), texts, seed, device)
    return Features.from_arrays(values, texts.labels)


def read_array(
    name: str,
    make: Callable[[], NDArray[np.float32]],
    texts: Examples,
    seed: int,
    device: str,
    kind: str = "",
) -> NDArray[np.float32]:
    """What a frozen model makes of texts, from the cache if it is there. `kind` tells apart what is made."""
    key = hashlib.sha256(
        f"{FORMAT} {_weights(name, seed)} {torch.device(device.split(',')[0]).type}{kind}".encode()
    )
    for array in (texts.tokens, texts.offsets):
        key.update(array.tobytes())
    path = assets.cache_folder() / "features" / f"{name}-{key.hexdigest()[:16]}.npy"
    if not path.exists():
        with assets.locked(path.stem):
            if not path.exists():  # another process may have made them while this one waited
                values = make()
                with replacing(path) as file:
                    np.save(file, values)
    return np.load(path)


def read_head(name: str, load: Callable[[], Any], task: Task, seed: int) -> nn.Linear:
    """A classifier's head as it starts, on the CPU: the same bits as `load` gives, from the cache if it is there."""
    stanza = {key: value for key, value in model_catalogue.stanza(name).items() if key != "title"}
    key = json.dumps([FORMAT, _weights(name, seed), tasks.digest(task.name), stanza], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = assets.cache_folder() / "features" / f"{name}-{task.name}-head-{digest}.npz"
    if not path.exists():
        start = {key: value.detach().cpu().numpy() for key, value in load().head.named_parameters()}
        with replacing(path) as file:
            np.savez(file, **start)
    with np.load(path) as start:
        rows, columns = start["weight"].shape
        head = nn.Linear(columns, rows, device="meta")  # draws nothing
        for key in ("weight", "bias"):
            setattr(head, key, nn.Parameter(torch.from_numpy(start[key]).clone()))
    return head


def _weights(name: str, seed: int) -> str:
    """What the weights of a model follow from."""
    drawn = f" {seed}" if "config" in model_catalogue.stanza(name) else ""
    return model_catalogue.digest(name) + drawn


@torch.no_grad()
def features(model: Any, texts: Examples) -> NDArray[np.float32]:
    """The features of texts, float32 [n, H]: the same bits for every number of threads."""
    device = next(model.parameters()).device
    values = np.empty((len(texts), model.head.in_features), np.float32)
    with one_thread():
        for order, part in texts.parts(TOKEN_BUDGET):
            ids, mask, _ = part.padded(device)
            values[order] = model.features(ids, mask).cpu().numpy()
    return values


@contextmanager
def one_thread() -> Iterator[None]:
    """A context whose results do not depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# -- the shared prefix of texts -----------------------------------------------------------------------------

MIN_TOKENS = 64  # a shorter prefix is not worth a pass of its own


def shared_prefix(texts: Examples, kept: int = 1) -> NDArray[np.int32]:
    """The tokens that all texts begin with, [P], without the last `kept` of any text."""
    prefix = texts.ids(0)[: max(0, int(texts.lengths().min()) - kept)]
    for i in range(1, len(texts)):
        differs = np.flatnonzero(texts.ids(i)[: len(prefix)] != prefix)
        prefix = prefix[: differs[0]] if len(differs) else prefix
    return prefix


@contextmanager
def reuse_prefix(model: Any, texts: Any, kept: int = 1) -> Iterator[None]:
    """Forward passes over these texts, or any of them, skip their shared prefix.

    Hidden states of the prefix are zeros; the others equal those of complete texts, except for rounding. Does
    nothing for a model that is not causal, for cached features, and for a prefix of fewer than MIN_TOKENS.

    Args:
        model: a Classifier or TextScorer.
        texts: `Examples`, or the features of texts.
        kept: tokens at the end of each text whose hidden states are used.
    """
    causal = getattr(model, "kind", "causal") == "causal" and isinstance(texts, Examples)
    prefix = shared_prefix(texts, kept) if causal and len(texts) > 1 else np.zeros(0, np.int32)
    length = len(prefix)
    if length < MIN_TOKENS:
        yield
        return
    ids = torch.from_numpy(prefix.astype(np.int64))[None].to(next(model.parameters()).device)
    cache = model.backbone(input_ids=ids, use_cache=True).past_key_values

    def skip_prefix(_: nn.Module, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        past = copy.deepcopy(cache)
        past.batch_repeat_interleave(len(options["input_ids"]))
        tokens = options["input_ids"][:, length:]
        return arguments, options | {"input_ids": tokens, "past_key_values": past, "use_cache": True}

    def pad_prefix(_: nn.Module, arguments: tuple, output: Any) -> Any:
        output.last_hidden_state = nn.functional.pad(output.last_hidden_state, (0, 0, length, 0))
        return output

    hooks = [
        model.backbone.register_forward_pre_hook(skip_prefix, with_kwargs=True),
        model.backbone.register_forward_hook(pad_prefix),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
