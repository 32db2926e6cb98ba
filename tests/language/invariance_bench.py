"""What the others of a batch move when one example leaves, and what a step takes, with the shapes of the batch and with those of each text:
python tests/language/invariance_bench.py

Models of four kinds, and a head alone on frozen features, float32 and bfloat16. Steps are taken in both ways in turn, on one thread; times
are of the processor. Trials of shapes are made before. Writes results/benchmark/tables/invariance.csv, a row as soon as it is there; rows
that are there are kept. Of the three larger models at batch 64 one example leaves, not three, and rounds are few.
"""

from __future__ import annotations

import statistics
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas
import torch

from baselines.mezo import MeZO
from dpzero.language.data import encoding, tasks
from dpzero.language.models import architectures, feature_cache, losses, models
from dpzero.language.models.batch_invariance import Cut, batch_shapes
from dpzero.studies.benchmark import batch_of
from dpzero.zeroth_order.invariance import others_move

OUT = Path("results/benchmark/tables/invariance.csv")
CLIP, SMOOTHING, TOKENS, HEAD = 50.0, 1e-3, 2048, "minilm head"
MODELS = ("minilm", HEAD, "opt-125m", "roberta-base", "smollm2-135m")
LARGE = MODELS[2:]
SIZES = (1, 2, 8, 16, 64)
ROUNDS, FEW_ROUNDS, HEAD_STEPS = 15, 3, 200  # of a batch of 64


class BatchShapes(losses.CrossEntropy):
    """Micro-batches as they were: padded to the longest text beside it."""

    def cut(self, model, batch, sides: int = 1, *_) -> list[Cut]:
        return batch_shapes(batch, self.token_budget // sides)


WAYS = {"batch": BatchShapes, "text": losses.CrossEntropy}


def load(name: str):
    """A model and texts; of the published shapes with random weights."""
    if name == HEAD:
        model, texts = models.load("minilm", tasks.load("r8"), "head"), encoding.encode("r8", "minilm", 24)
        return model, feature_cache.read("minilm", model, texts["train"][np.arange(1000)])
    if name == "minilm":
        return models.load(name, tasks.load("r8"), "bias"), encoding.encode("r8", name, 24)["train"]
    if name == "smollm2-135m":
        return models.load(name, tasks.load("movies"), "bias"), encoding.encode("movies", name, 64)["train"]
    model = architectures.build(name)
    for place, p in model.named_parameters():
        p.requires_grad_(place.endswith("bias"))
    return model, batch_of(400, "short")


def moved(name: str, compute: str, size: int) -> dict[str, float]:
    """By each way of cutting: what the others move, over the clip."""
    model, texts = load(name)
    drawn = np.random.default_rng(size).choice(len(texts), size, replace=False)
    leave = 1 if name in LARGE and size == 64 else 3
    leaving = list(range(0, size, max(1, size // leave)))[:leave]
    found = {}
    for way, kind in WAYS.items():
        loss = kind(TOKENS, compute)
        of = others_move(loss, model, texts[drawn], clip=CLIP, smoothing=SMOOTHING, leaving=leaving)
        found[f"others_move_over_clip_{way}"] = of["others_move_over_clip"]
    return found


def timed(name: str, compute: str) -> dict[str, float]:
    """Seconds of a step of 64 in each way, and their ratio in pairs."""
    model, texts = load(name)
    settings = {"learning_rate": 1e-9, "smoothing": SMOOTHING, "seed": 0}
    ways = {way: MeZO(model, kind(TOKENS, compute), 64, **settings) for way, kind in WAYS.items()}
    rounds, count = FEW_ROUNDS if name in LARGE else ROUNDS, HEAD_STEPS if name == HEAD else 1
    random, pairs = np.random.default_rng(1), []
    for number in range(rounds + 1):
        batches, seconds = [texts[random.choice(len(texts), 64, replace=False)] for _ in range(count)], {}
        with torch.no_grad():
            for batch in batches:
                ways["text"].loss.cut(model, batch)  # tries shapes that were not tried yet
        for way in list(WAYS)[:: -1 if number % 2 else 1]:
            start = time.process_time()
            for batch in batches:
                ways[way].step(batch)
            seconds[way] = (time.process_time() - start) / count
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
    for size, name, compute in product(SIZES, MODELS, losses.COMPUTE):
        if (name, compute, size) in made or (name == HEAD and compute != "float32"):
            continue  # features are read in float32 alone
        row = {"model": name, "compute": compute, "batch_size": size} | moved(name, compute, size)
        rows.append(row)
        if size == 64:
            row |= timed(name, compute)
        print(row, flush=True)
        rows.sort(
            key=lambda row: (MODELS.index(row["model"]), row["compute"] != "float32", row["batch_size"])
        )
        pandas.DataFrame(rows).to_csv(OUT, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
