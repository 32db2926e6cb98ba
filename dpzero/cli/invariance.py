"""The verb that measures what one example that leaves a batch moves in the others, on real rows."""

from __future__ import annotations

import argparse

from ..errors import UsageError
from ..plan.settings import FACTOR, POSITIVE_COUNT
from ..run.invariance import CLIP, SMOOTHING
from .options import real, whole

TUNES = ("full", "bias", "lora", "prefix", "head")


def add(verbs) -> None:
    """To the subparsers of the command line."""
    verb = verbs.add_parser(
        "invariance", help="what one example that leaves a batch moves in the others, over the clip"
    )
    verb.add_argument("--task", default="r8", help="whose first training rows are the batch")
    verb.add_argument("--model", default="minilm", help="a name of models.yaml")
    verb.add_argument("--tune", default="bias", choices=TUNES, help="what is perturbed")
    verb.add_argument(
        "--compute", choices=("float32", "bfloat16"), default="float32", help="type of products"
    )
    for name, default, words in (
        ("batch-size", 16, "examples"),
        ("max-length", 64, "tokens of a text, beyond which it is cut"),
        ("token-budget", 2048, "padded tokens of a micro-batch"),
        ("leaving", 4, "how many examples leave, one at a time"),
    ):
        verb.add_argument(f"--{name}", type=whole(POSITIVE_COUNT), default=default, help=words)
    verb.add_argument("--clip", type=real(FACTOR), default=CLIP, help="bound of an example's difference")
    verb.add_argument("--smoothing", type=real(FACTOR), default=SMOOTHING, help="distance of the two points")
    verb.set_defaults(verb=_invariance)


def _invariance(options: argparse.Namespace) -> dict:
    """On the first rows of a task's training split."""
    import numpy as np

    from ..language.data import tasks
    from ..language.models import models, objective
    from ..zeroth_order.invariance import others_move

    rows = objective.encode(options.task, options.model, options.max_length)["train"]
    if not 2 <= options.batch_size <= len(rows):
        raise UsageError(
            f"--batch-size is {options.batch_size}: give 2 to {len(rows)}, the training rows of {options.task}"
        )
    model = models.load(options.model, tasks.load(options.task), options.tune)
    loss = objective.loss(options.task, options.model, options.token_budget, options.compute)
    leaving = np.linspace(0, options.batch_size - 1, min(options.leaving, options.batch_size)).astype(int)
    found = others_move(
        loss,
        model,
        rows[np.arange(options.batch_size)],
        clip=options.clip,
        smoothing=options.smoothing,
        leaving=leaving.tolist(),
    )
    asked = {key: getattr(options, key) for key in ("task", "model", "compute", "batch_size", "clip", "smoothing")}  # fmt: skip
    return found | asked
