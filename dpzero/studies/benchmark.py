"""Step time and memory of each method over the floor: two plain forward passes on the same batch, in the same process.

Random weights of a published shape, a batch of random tokens. Steps and floors alternate, so that whatever slows the machine slows
both; a ratio is the median over rounds of step over floor.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import UsageError
from ..language.data.encoding import Examples
from ..language.models import architectures, losses
from ..memory import trackers
from ..memory.naive_step import PublicStep
from ..plan.registry import card
from ..privacy import Rehearsal, Setting
from ..run.provenance import provenance

STEP = {"learning_rate": 1e-9}  # so small that the weights stay what they are
VOCABULARY = 30_000  # tokens of the batch are below it, and so in every shape
NOISE = {"clip": 1.0, **STEP}


@dataclass(frozen=True)
class Row:
    """One line of the benchmark. `method` is a method's file, or `public`."""

    title: str
    method: str
    settings: dict = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """Pairs of forward passes that its step takes."""
        return self.settings.get("directions", 1)


ROWS = {
    "dpzero": Row("DPZero", "dpzero", NOISE),
    "mezo": Row("MeZO", "mezo", STEP),
    "mezo_on_read": Row("MeZO, perturbed on read", "mezo", STEP | {"perturb": "on_read"}),
    "mezo_sphere": Row("MeZO, sphere", "mezo", STEP | {"direction_law": "sphere"}),
    "mezo_signs": Row("MeZO, signs", "mezo", STEP | {"direction_law": "rademacher"}),
    "mezo_low_rank": Row("MeZO, rank 1", "mezo", STEP | {"direction_law": "low_rank"}),
    "mezo_low_rank_on_read": Row(
        "MeZO, rank 1, in the linears", "mezo", STEP | {"direction_law": "low_rank", "perturb": "on_read"}
    ),
    "mezo_both_signs": Row("MeZO, both signs in a batch", "mezo", STEP | {"perturb": "both_signs"}),
    "mezo_cuda_graphs": Row("MeZO, CUDA graphs", "mezo", STEP | {"cuda_graphs": True}),
    "dp_aggzo": Row("DP-AggZO, 4 directions", "dp_aggzo", NOISE | {"directions": 4}),
    "public": Row("public-style step", "public"),
    "sgd": Row("SGD", "fine_tuning", STEP | {"optimizer": "sgd"}),
    "adamw": Row("AdamW", "fine_tuning", STEP | {"optimizer": "adamw"}),
    "dp_sgd_ghost": Row("DP-SGD, ghost norms", "dp_sgd", NOISE | {"clipping": "ghost"}),
    "dp_sgd_hooks": Row("DP-SGD, per-sample gradients", "dp_sgd", NOISE | {"clipping": "hooks"}),
}
ON_ONE_MODEL = ("dpzero", "mezo", "dp_aggzo", "public")  # these leave a model as they found it


def batch_of(size: int, lengths: str, seed: int = 0) -> Examples:
    """Random tokens. `lengths`: a number, or `short` for those of short sentences in a prompt (log-normal, median 27, 8 to 128)."""
    random = np.random.default_rng(seed)
    if lengths == "short":
        counts = np.clip(np.exp(random.normal(np.log(27), 0.5, size)).astype(int), 8, 128)
    elif lengths.isdigit() and int(lengths) > 0:
        counts = np.full(size, int(lengths))
    else:
        raise UsageError(f"--length is {lengths!r}: give a number of tokens, or short")
    return Examples.of([random.integers(5, VOCABULARY, n) for n in counts], random.integers(0, 2, size))


class Benchmark:
    """One model shape, one batch, one device."""

    def __init__(
        self,
        model: str,
        batch_size: int,
        lengths: str,
        *,
        token_budget: int,
        device: str,
        compute: str = "float32",
        rounds: int = 7,
        log: Callable[[str], object] = print,
    ) -> None:
        if batch_size < 1 or rounds < 1:
            raise UsageError("--batch-size and --rounds must be at least 1")
        self.name, self.device, self.rounds, self.log = model, device, rounds, log
        self.batch, self.lengths, self.compute = batch_of(batch_size, lengths), lengths, compute
        self.token_budget = token_budget
        self._losses: dict[int, losses.CrossEntropy] = {}

    def run(self, names: list[str], keep: Callable[[dict], object] = lambda found: None) -> dict:
        """Measures the rows; after each group `keep` has those that are there. One that runs out of memory says so."""
        unknown = [name for name in names if name not in ROWS]
        if unknown:
            raise UsageError(f"no row {unknown[0]!r}: give some of {', '.join(ROWS)}")
        if not self.device.startswith("cuda"):
            names = [name for name in names if not ROWS[name].settings.get("cuda_graphs")]
        found = []
        shared = [name for name in names if ROWS[name].method in ON_ONE_MODEL]
        for group in [shared, *([name] for name in names if name not in shared)]:
            if group:
                found += self._group(group)
                found.sort(key=lambda row: names.index(row["name"]))
                keep(made := {**self._header(), "rows": found})
        return made

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _group(self, names: list[str]) -> list[dict]:
        rows = self._measured(names)
        gc.collect()  # a wrapped model refers to itself
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return rows

    def _measured(self, names: list[str]) -> list[dict]:
        """Rows that share a model."""
        model = architectures.build(self.name, device=self.device)
        weights = trackers.weights_bytes(model)
        rows = {name: {"name": name, "title": ROWS[name].title, "status": "ok"} for name in names}
        self._forward(model)  # tries the shapes
        inference = trackers.peak_bytes(model, lambda: self._forward(model))
        for name in names:
            self.log(f"{self.name}: memory of {ROWS[name].title}")
            rows[name] |= {"weights_bytes": weights, "inference_peak_bytes": inference}
            rows[name] |= self._peak(model, name)
        able = [name for name in names if rows[name]["status"] == "ok"]
        for name, times in self._times(model, able).items():
            rows[name] |= times
        return list(rows.values())

    def _peak(self, model: architectures.Answering, name: str) -> dict:
        """Of two steps: optimiser state is made in the first and is there in the second. Or why there is none."""
        if ROWS[name].method not in ON_ONE_MODEL:  # hooks and moments stay off the model that is timed
            model = architectures.build(self.name, device=self.device)

        def two_steps() -> None:
            step = self._step(model, name)
            step()
            step()

        try:
            return {"peak_bytes": trackers.peak_bytes(model, two_steps)}
        except ValueError as error:  # the method refuses this model
            return {"status": "refused", "error": str(error)}
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not trackers.is_out_of_memory(error):
                raise
            return {"status": "oom"}

    def _times(self, model: architectures.Answering, names: list[str]) -> dict[str, dict]:
        steps = {name: self._step(model, name) for name in names}
        for step in (lambda: self._floor(model), *steps.values()):
            step()  # compilation, workspaces, lazily made state
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for number in range(self.rounds):
            self.log(f"{self.name}: round {number + 1} of {self.rounds}")
            for name, step in steps.items():
                floor = self._seconds(lambda: self._floor(model))
                seconds[name].append((self._seconds(step), floor))
        return {name: self._summary(name, pairs) for name, pairs in seconds.items()}

    def _summary(self, name: str, pairs: list[tuple[float, float]]) -> dict:
        steps, floors = zip(*pairs, strict=True)
        ratios = sorted(step / (floor * ROWS[name].pairs) for step, floor in pairs)
        tokens = int(self.batch.lengths().sum())
        return {
            "step_seconds_median": statistics.median(steps),
            "step_seconds_min": min(steps),
            "two_forward_seconds_median": statistics.median(floors),
            "two_forward_seconds_min": min(floors),
            "ratio_median": statistics.median(ratios),
            "ratio_min": ratios[0],
            "ratio_max": ratios[-1],
            "ratio_of_minima": min(steps) / (min(floors) * ROWS[name].pairs),
            "pairs": ROWS[name].pairs,
            "tokens_per_second": tokens * 2 * ROWS[name].pairs / statistics.median(steps),
        }

    def _seconds(self, work: Callable[[], object]) -> float:
        self._synchronize()
        start = time.perf_counter()
        work()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    # -- what is measured ----------------------------------------------------------------------------------------------

    def _loss(self, token_budget: int | None = None) -> losses.CrossEntropy:
        """One for each budget: it keeps which shapes it has tried on a model."""
        budget = token_budget or self.token_budget
        return self._losses.setdefault(budget, losses.CrossEntropy(budget, self.compute))

    @torch.no_grad()
    def _forward(self, model: architectures.Answering) -> None:
        self._loss()(model, self.batch)

    def _floor(self, model: architectures.Answering) -> None:
        self._forward(model)
        self._forward(model)

    def _step(self, model: architectures.Answering, name: str) -> Callable[[], object]:
        row, size = ROWS[name], len(self.batch)
        if row.method == "public":
            method = PublicStep(model)
        else:
            share = self._budget(size) if card(row.method).private else size
            budget = self._few_rows(model) if name == "dp_sgd_hooks" else None
            method = card(row.method).load()(model, self._loss(budget), share, seed=0, **row.settings)
        return lambda: method.step(self.batch)

    @staticmethod
    def _budget(size: int) -> Rehearsal:
        setting = Setting("gaussian", "poisson", "add_remove", 1000 * size, size, 1000, 1e-9)
        return Rehearsal(setting, 1.0)

    def _few_rows(self, model: architectures.Answering) -> int:
        """A micro-batch whose per-sample gradients take at most 0.4 of the memory that is there."""
        if self.device.startswith("cuda"):
            there = torch.cuda.mem_get_info()[0]
        else:
            there = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        rows = max(1, int(0.4 * there / trackers.weights_bytes(model)))
        lengths = self.batch.lengths()
        return int(min(self.token_budget, max(lengths.max(), rows * lengths.min())))

    # -- what a rerun needs --------------------------------------------------------------------------------------------

    def _header(self) -> dict:
        loss, lengths = self._loss(), self.batch.lengths()
        padded = sum(len(part) * int(part.lengths().max()) for part in loss.parts(self.batch))
        return {
            "model": self.name,
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
            "memory": "CUDA allocator"
            if self.device.startswith("cuda")
            else "live tensor storage on the CPU",
            "threads": torch.get_num_threads(),
            "provenance": provenance("dpzero", self.device),
        }
