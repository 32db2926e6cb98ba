"""Step time and memory of each method, relative to two plain forward passes on the same batch.

Random weights of a published architecture, a batch of random tokens. Steps and forward passes alternate, so
that a busy machine slows both. A ratio is the median over rounds of the step time over the time of the
forward passes.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import UsageError
from ..language.models import losses, random_models
from ..language.models.encoding import Examples
from ..memory import trackers
from ..memory.stand_in_step import build_method
from ..plan.method_variants import VARIANTS
from ..run.provenance import provenance

VOCABULARY = 30_000  # the tokens of the batch are below it, and so in every architecture
ROWS = [
    "dpzero",
    "dpzero_on_read",
    "dpzero_sphere",
    "dpzero_signs",
    "dpzero_low_rank",
    "dpzero_low_rank_on_read",
    "mezo",
    "dp_aggzo",
    "public",
    "sgd",
    "adamw",
    "dp_sgd_per_layer",
    "dp_sgd_book_keeping",
    "dp_sgd_ghost",
    "dp_sgd_hooks",
]


def batch_of(size: int, lengths: str, seed: int = 0) -> Examples:
    """Random tokens. `lengths`: a number, or `short` for short sentences (log-normal, median 27, 8 to 128)."""
    random = np.random.default_rng(seed)
    if lengths == "short":
        counts = np.clip(np.exp(random.normal(np.log(27), 0.5, size)).astype(int), 8, 128)
    elif lengths.isdigit() and int(lengths) > 0:
        counts = np.full(size, int(lengths))
    else:
        raise UsageError(f"--length is {lengths!r}: give a number of tokens, or short")
    return Examples.from_token_ids(
        [random.integers(5, VOCABULARY, n) for n in counts], random.integers(0, 2, size)
    )


@dataclass
class Benchmark:
    """Measures methods on one architecture, one batch and one device. `lengths`: see `batch_of`."""

    model: str
    batch_size: int
    lengths: str
    token_budget: int
    device: str
    compute: str = "float32"
    rounds: int = 7
    log: Callable[[str], object] = print

    def __post_init__(self) -> None:
        self.batch, self.on_cuda = batch_of(self.batch_size, self.lengths), self.device.startswith("cuda")
        self.loss = losses.CrossEntropy(self.token_budget, self.compute)

    def run(self, names: Sequence[str]) -> Iterator[dict]:
        """Measure the rows; yields the result so far after each. Out of memory is the status `oom`."""
        for name in names:
            if name not in ROWS:
                raise UsageError(f"no row {name!r}: give some of {', '.join(ROWS)}")
        rows = []
        for name in names:
            rows.append(self._measure(name))
            yield {**self._header(), "rows": rows}
            gc.collect()  # a wrapped model refers to itself
            if self.on_cuda:
                torch.cuda.empty_cache()

    # -- measuring -------------------------------------------------------------------------------------------

    def _measure(self, name: str) -> dict:
        """One row. The peak is that of two steps: an optimizer creates its state in the first."""
        title = VARIANTS[name].title
        self.log(f"{self.model}: memory of {title}")
        model = random_models.build(self.model, device=self.device)
        self._forward(model)  # tries the shapes
        row: dict[str, Any] = {
            "name": name,
            "title": title,
            "status": "ok",
            "weights_bytes": trackers.weights_bytes(model),
            "inference_peak_bytes": trackers.peak_bytes(model, lambda: self._forward(model)),
        }
        step = None

        def two_steps() -> None:
            nonlocal step
            step = self._step(model, name)
            step()
            step()

        try:
            row["peak_bytes"] = trackers.peak_bytes(model, two_steps)
        except ValueError as error:  # the method refuses this model
            return row | {"status": "refused", "error": str(error)}
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not trackers.is_out_of_memory(error):
                raise
            return row | {"status": "oom"}
        assert step is not None
        return row | self._time(model, name, step)

    def _time(self, model: random_models.Answering, name: str, step: Callable[[], object]) -> dict:
        def two_forwards() -> None:
            self._forward(model)
            self._forward(model)

        two_forwards()
        step()  # compilation, workspaces
        steps, forwards = [], []
        for number in range(self.rounds):
            self.log(f"{self.model}: round {number + 1} of {self.rounds}")
            forwards.append(self._seconds(two_forwards))
            steps.append(self._seconds(step))
        pairs = VARIANTS[name].settings.get("directions", 1)  # of forward passes in a step
        ratios = sorted(one / (two * pairs) for one, two in zip(steps, forwards, strict=True))
        median = statistics.median(steps)
        return {
            "step_seconds_median": median,
            "step_seconds_min": min(steps),
            "two_forward_seconds_median": statistics.median(forwards),
            "two_forward_seconds_min": min(forwards),
            "ratio_median": statistics.median(ratios),
            "ratio_min": ratios[0],
            "ratio_max": ratios[-1],
            "ratio_of_minima": min(steps) / (min(forwards) * pairs),
            "pairs": pairs,
            "tokens_per_second": int(self.batch.lengths().sum()) * 2 * pairs / median,
        }

    def _seconds(self, work: Callable[[], object]) -> float:
        synchronize = torch.cuda.synchronize if self.on_cuda else lambda: None
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        return time.perf_counter() - start

    # -- what is measured ------------------------------------------------------------------------------------

    @torch.no_grad()
    def _forward(self, model: random_models.Answering) -> None:
        self.loss(model, self.batch)

    def _step(self, model: random_models.Answering, name: str) -> Callable[[], object]:
        loss = self.loss
        if name == "dp_sgd_hooks":
            loss = losses.CrossEntropy(self._hooks_budget(model), self.compute)
        method = build_method(VARIANTS[name], model, loss, len(self.batch))
        return lambda: method.step(self.batch)

    def _hooks_budget(self, model: random_models.Answering) -> int:
        """Tokens of a micro-batch whose per-sample gradients take at most 0.4 of the free memory."""
        if self.on_cuda:
            free = torch.cuda.mem_get_info()[0]
        else:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        rows = max(1, int(0.4 * free / trackers.weights_bytes(model)))
        lengths = self.batch.lengths()
        return int(min(self.token_budget, max(lengths.max(), rows * lengths.min())))

    def _header(self) -> dict:
        lengths = self.batch.lengths()
        padded = sum(len(part) * int(part.lengths().max()) for part in self.loss.parts(self.batch))
        return {
            "model": self.model,
            "batch_size": len(self.batch),
            "length": self.lengths,
            "tokens": int(lengths.sum()),
            "padded_tokens": padded,
            "longest": int(lengths.max()),
            "token_budget": self.token_budget,
            "weights_dtype": "float32",
            "compute_dtype": self.compute,
            "head": "two words at one position (public-style: the vocabulary at all positions)",
            "attention": "sdpa",
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "rounds": self.rounds,
            "memory": "CUDA allocator" if self.on_cuda else "live tensor storage on the CPU",
            "threads": torch.get_num_threads(),
            "provenance": provenance("dpzero", self.device),
        }
