"""What the others of a batch move when one example leaves, and what a step takes, with the shapes of the batch and with those of each text:
python tests/language/invariance_bench.py

Models of four kinds, float32 and bfloat16. Each step is taken in both ways in turn, on one thread; times are of the processor. Trials of
shapes are taken once, before. Writes results/benchmark/tables/invariance.csv, a row as soon as it is there; rows that
are there are kept.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import pandas
import torch

from baselines.mezo import MeZO
from dpzero.experiment.benchmark import batch_of
from dpzero.language import examples, losses, models, shapes, tasks
from dpzero.language.invariant import Cut, batch_shapes
from dpzero.zeroth_order.invariance import others_move

OUT = Path("results/benchmark/tables/invariance.csv")
CLIP, SMOOTHING, TOKENS, LEAVING = 50.0, 1e-3, 2048, 3
MODELS = ("minilm", "opt-125m", "roberta-base", "smollm2-135m")
SIZES = {"minilm": (1, 2, 8, 16, 64)}
ROUNDS = 15  # of steps of a batch of 64


class BatchShapes(losses.CrossEntropy):
    """Micro-batches as they were: padded to the longest text beside it."""

    def cut(self, model, batch, sides: int = 1, *_) -> list[Cut]:
        return batch_shapes(batch, self.token_budget // sides)


WAYS = {"batch": BatchShapes, "text": losses.CrossEntropy}


def load(name: str):
    """A model and texts; of the published shapes with random weights."""
    if name == "minilm":
        return models.load(name, tasks.load("r8"), "bias"), examples.encode("r8", name, 24)["train"]
    if name == "smollm2-135m":
        return models.load(name, tasks.load("movies"), "bias"), examples.encode("movies", name, 64)["train"]
    model = shapes.build(name)
    for place, p in model.named_parameters():
        p.requires_grad_(place.endswith("bias"))
    return model, batch_of(400, "short")


def moved(name: str, compute: str, size: int) -> dict[str, float]:
    """By each way of cutting: what the others move, over the clip."""
    model, texts = load(name)
    drawn = np.random.default_rng(size).choice(len(texts), size, replace=False)
    leaving = list(range(0, size, max(1, size // LEAVING)))[:LEAVING]
    found = {}
    for way, kind in WAYS.items():
        loss = kind(TOKENS, compute)
        of = others_move(loss, model, texts[drawn], clip=CLIP, smoothing=SMOOTHING, leaving=leaving)
        found[f"others_move_over_clip_{way}"] = of["others_move_over_clip"]
    return found


def timed(name: str, compute: str, rounds: int) -> dict[str, float]:
    """Seconds of a step of 64 in each way, and their ratio in pairs."""
    model, texts = load(name)
    settings = {"learning_rate": 1e-9, "smoothing": SMOOTHING, "seed": 0}
    steps = {way: MeZO(model, kind(TOKENS, compute), 64, **settings) for way, kind in WAYS.items()}
    random, pairs = np.random.default_rng(1), []
    for number in range(rounds + 1):
        batch, seconds = texts[random.choice(len(texts), 64, replace=False)], {}
        for way in list(WAYS)[:: -1 if number % 2 else 1]:
            if way == "text":
                steps[way].step(batch)  # shapes of this batch that were not tried yet
            start = time.process_time()
            steps[way].step(batch)
            seconds[way] = time.process_time() - start
        pairs += [seconds] * (number > 0)
    ratios = sorted(pair["text"] / pair["batch"] for pair in pairs)
    return {
        "step_seconds_batch": statistics.median(pair["batch"] for pair in pairs),
        "step_seconds_text": statistics.median(pair["text"] for pair in pairs),
        "ratio_median": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "rounds": rounds,
    }


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict] = pandas.read_csv(OUT).to_dict("records") if OUT.exists() else []
    made = {(row["model"], row["compute"], row["batch_size"]) for row in rows}
    for name in MODELS:
        for compute in losses.COMPUTE:
            for size in SIZES.get(name, (2, 16)):
                if (name, compute, size) in made:
                    continue
                row = {"model": name, "compute": compute, "batch_size": size} | moved(name, compute, size)
                rows.append(row)
                if size == 64:
                    row |= timed(name, compute, ROUNDS)
                print(row, flush=True)
                OUT.parent.mkdir(parents=True, exist_ok=True)
                pandas.DataFrame(rows).to_csv(OUT, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
