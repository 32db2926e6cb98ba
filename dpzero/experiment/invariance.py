"""Whether the losses of a model are batch-invariant on this machine: for a record, and as a verb of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UsageError
from .options import real, whole
from .ranges import FACTOR, POSITIVE_COUNT

TUNES = ("full", "bias", "lora", "prefix", "head")
STAND_INS = 8
CLIP, SMOOTHING, LENGTH = 50.0, 1e-3, 16
ARCHITECTURES = ("roberta-base", "opt-125m")  # an encoder and a decoder


def measured(loss, model, batch, *, clip: float, smoothing: float) -> dict:
    """For a run's record, of `stand_ins`, before its first release: nothing of private examples enters."""
    from ..zeroth_order.invariance import losses_move

    moved = losses_move(loss, model, batch, clip=clip, smoothing=smoothing, leaving=(0, STAND_INS // 2))
    how = f"losses of {len(batch)} stand-ins, without one of them"
    return {"others_move_over_clip": moved, "compute": loss.compute, "how": how}


def of_architectures(names=ARCHITECTURES) -> list[dict]:
    """What the others move when either of two of eight random texts leaves, for each model and type of products that this machine has.

    Weights are random, in the published shapes, and the biases are perturbed.
    """
    import torch

    from ..language import losses, shapes
    from ..zeroth_order.invariance import others_move

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for name in names:
        model = shapes.build(name, device=device)
        for place, parameter in model.named_parameters():
            parameter.requires_grad_(place.endswith("bias"))
        batch = stand_ins(None, model, LENGTH)
        for compute in (*losses.COMPUTE, *(["tf32"] if device == "cuda" else [])):
            loss = losses.CrossEntropy(2048, compute.replace("tf32", "float32"))
            with _tf32(compute == "tf32"):
                moved = others_move(loss, model, batch, clip=CLIP, smoothing=SMOOTHING, leaving=(0, 4))
            found.append({"model": name, "compute": compute, **moved})
    return found


@contextmanager
def _tf32(used: bool) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if used else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def stand_ins(like, model, length: int):
    """Random words or features of the type of `like` (a split of a task, or its features), the longest of `length` tokens, the others shorter."""
    import numpy as np

    from ..language.continuations import Continuations
    from ..language.examples import Examples
    from ..language.frozen import Features
    from ..language.invariant import stand_in_ids

    if isinstance(like, Features):
        values = np.random.default_rng(0).normal(size=(STAND_INS, like.values.shape[1]))
        return Features(values.astype(np.float32), np.zeros(STAND_INS, np.int64))
    texts = [stand_in_ids(model, int(n)) for n in np.linspace(length, 2, STAND_INS)]
    if isinstance(like, Continuations):
        return Continuations.of([[(ids, 1, True)] for ids in texts], [""] * STAND_INS)
    return Examples.of(texts, [0] * STAND_INS)


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

    from ..language import models, objective, tasks
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
