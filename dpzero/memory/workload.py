"""One step of one method on one shape and a stand-in batch, with its phases told apart: what is predicted and what is measured."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..language.data.encoding import Examples
from ..language.models import architectures, losses, tuning
from ..language.models.batch_invariance import Cut, batch_shapes
from ..plan.method_variants import variant
from ..plan.registry import card
from ..privacy import Rehearsal, Setting
from ..privacy.mechanisms import CHUNK, Noise
from .naive_step import PublicStep
from .trackers import Phases

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NOT_TRAINED_SO = (
    "weights stored in {dtype}, as papers count them; this project runs inference so and refuses to train so, because small updates "
    "vanish"
)
MOST_TOKENS = 2**31  # of a batch: beyond it nobody means it


@dataclass(frozen=True)
class Workload:
    """What a step is taken of. Raises UsageError for what makes no sense.

    Args:
        model: a name of architectures.yaml or a path of a config.json.
        method: a name of `variants`.
        dtype: in which the weights are stored.
        compute: of the matrix products, where it differs: bfloat16 over float32 weights.
        tune: what is trained, if not what the variant says.
        token_budget: padded tokens of a micro-batch; 0: the batch is one.
    """

    model: str
    method: str
    batch_size: int
    sequence_length: int
    dtype: str = "float32"
    compute: str = "float32"
    tune: str = ""
    token_budget: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "sequence_length"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.token_budget < 0:
            raise UsageError(
                f"token_budget is {self.token_budget}: give 0 for the whole batch, or a number of tokens"
            )
        if self.batch_size * self.sequence_length > MOST_TOKENS:
            raise UsageError(
                f"{self.batch_size} x {self.sequence_length} tokens are no batch: give smaller sizes"
            )
        for name, value, known in (("dtype", self.dtype, DTYPES), ("compute", self.compute, losses.COMPUTE)):
            if value not in known:
                raise UsageError(f"{name} is {value!r}: give one of {', '.join(known)}")
        if self.compute != "float32" and self.dtype != "float32":
            raise UsageError(
                f"compute {self.compute} is for float32 weights: leave it out with dtype {self.dtype}"
            )
        if self.tune and self.tune not in tuning.TUNES:
            raise UsageError(f"tune is {self.tune!r}: give one of {', '.join(tuning.TUNES)}")
        variant(self.method)
        longest = architectures.positions(architectures.config_of(self.model))
        if self.sequence_length > longest:
            raise UsageError(
                f"sequence_length is {self.sequence_length}, but {self.model} knows {longest} positions: give a shorter one"
            )

    @property
    def trained(self) -> str:
        return self.tune or variant(self.method).tune

    @property
    def notes(self) -> list[str]:
        half = self.dtype != "float32" and self.method != "inference"
        return [NOT_TRAINED_SO.format(dtype=self.dtype)] if half else []


class Silence(Noise):
    def unit(self, count: int, *counter: int) -> np.ndarray:
        return np.zeros(count)


class Quiet(Rehearsal):
    """Draws no noise: its memory is one chunk at a time, of which each tensor's first one is taken."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, 1.0)
        self._noise = Silence(setting.mechanism, 1.0, "float", self.key.stream("noise"))

    def release_(self, clipped_sums, clip: float) -> None:
        super().release_([total.view(-1)[:CHUNK] for total in clipped_sums], clip)


def tuned_model(workload: Workload, device: str) -> architectures.Answering:
    """Random weights, float32, with `requires_grad` and checkpointing as the workload says."""
    model = architectures.build(workload.model, device=device)
    if workload.trained != "full":
        tuning.select(model, workload.trained)
        model.freeze_vocabulary()
    if variant(workload.method).checkpointing:
        _checkpoint(model)
    return model


class Loaded:
    """A workload's model with its batch and method. Raises ValueError where the method refuses the model."""

    def __init__(self, workload: Workload, model: architectures.Answering) -> None:
        self.workload, self.variant, self.model = workload, variant(workload.method), model
        size, length = workload.batch_size, workload.sequence_length
        self.batch = _stand_in(size, length)
        self.loss = Watched(workload.token_budget or size * length, workload.compute)
        self.method = None if self.variant.method == "zero_shot" else self._method()
        self._watch()
        if workload.dtype != "float32":  # which no method takes: so after it is made
            for tensor in [*self.model.parameters(), *self.model.buffers()]:
                if tensor.dtype == torch.float32:
                    tensor.data = tensor.data.to(DTYPES[workload.dtype])

    def _method(self):
        if self.variant.method == "public":
            return PublicStep(self.model)
        found, size = card(self.variant.method), self.workload.batch_size
        share = self._budget(size) if found.private else size
        made = found.load()(self.model, self.loss, share, seed=0, **self.variant.settings)
        for group in made.optimizer.param_groups if found.order == 1 else ():
            group[self.variant.implementation] = True
        return made

    @staticmethod
    def _budget(size: int) -> Rehearsal:
        setting = Setting("gaussian", "poisson", "add_remove", 1000 * size, size, 1000, 1e-9)
        with warnings.catch_warnings():
            return Quiet(setting)

    @property
    def rest(self) -> str:
        """The phase of what is in no other."""
        return "backward" if hasattr(self.method, "optimizer") else "perturb"

    @torch.no_grad()
    def forward(self) -> None:
        """Plain inference on the batch."""
        self.loss(self.model, self.batch)

    def steps(self, phases: Phases) -> None:
        """Two steps where an optimizer makes its state in the first; one of another."""
        self.loss.phases = phases
        if self.method is None:
            return self.forward()
        for _ in range(1 if self.variant.settings.get("optimizer", "sgd") == "sgd" else 2):
            self.method.step(self.batch)

    def _watch(self) -> None:
        """The method's own functions, as phases of whatever `steps` was given last."""
        if self.variant.method == "public":
            self._name("forward", self.method, "_losses")
            self._name("update", self.method, "_update")
        elif self.rest == "backward":
            self._name("update", self.method.optimizer, "step")
        elif self.method is not None:
            self._name("update", self.method, "_move")

    def _name(self, phase: str, owner: object, attribute: str) -> None:
        work = getattr(owner, attribute)

        def watched(*arguments, **named):
            with self.loss.phases.phase(phase):
                return work(*arguments, **named)

        setattr(owner, attribute, watched)


def _stand_in(size: int, length: int) -> Examples:
    """Texts of one length, but for one that is a token shorter: padding, and with it a mask, is in every real batch."""
    lengths = [length] * (size - 1) + [max(1, length - 1) if size > 1 else length]
    return Examples.of([np.ones(n, np.int32) for n in lengths], np.zeros(size, np.int64))


class Watched(losses.CrossEntropy):
    """A loss whose passes through the model are the phase `forward`, once there are phases. Its shapes are those of the batch: fake tensors
    have no bits to keep."""

    phases: Phases | None = None

    def cut(self, model: nn.Module, batch: Examples, sides: int = 1, *_) -> Sequence[Cut]:
        return batch_shapes(batch, self.token_budget // sides)

    def _losses(self, model: nn.Module, part: Examples, length: int) -> Tensor:
        with self.phases.phase("forward") if self.phases else nullcontext():
            return super()._losses(model, part, length)


def _checkpoint(model: architectures.Answering) -> None:
    """transformers asks the layer itself whether it is in training; nothing in it drops out (see `shapes`)."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True


def counts(model: nn.Module) -> Iterator[int]:
    """Parameters, then those that are trained."""
    yield sum(p.numel() for p in model.parameters())
    yield sum(p.numel() for p in model.parameters() if p.requires_grad)
