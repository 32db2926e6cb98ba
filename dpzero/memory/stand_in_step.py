"""One step of a method variant on random weights and a stand-in batch, divided into phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..language.models import losses, model_catalogue, random_models, text_classifier
from ..language.models.batch_invariance import Cut, batch_shapes
from ..language.models.encoding import Examples
from ..plan.method_variants import Variant, variant
from ..plan.registry import card
from ..privacy import Setting, StandInBudget
from ..privacy.mechanisms import CHUNK, Noise
from .public_code_step import NaiveStep
from .trackers import AllocatorPeaks, LiveStorage, Phases, weights_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HALF_PRECISION = (
    "weights stored in {dtype}, as papers count them; this project runs inference so and refuses to train so, "
    "because small updates vanish"
)
Tracker = LiveStorage | AllocatorPeaks
MOST_TOKENS = 2**31  # of a batch: more is a mistake


@dataclass(frozen=True)
class Workload:
    """A step whose memory is asked for. Raises UsageError for values out of range.

    Args:
        model: a name of architectures.yaml or the path of a config.json.
        method: a name of `method_variants`.
        batch_size: texts of the batch.
        sequence_length: tokens of each text.
        dtype: of the stored weights.
        compute: type of matrix products; bfloat16 is for float32 weights.
        tune: trainable parameters; empty: the variant's.
        token_budget: padded tokens of a micro-batch; 0: the whole batch.
        tie_embeddings: false: with tune full, the output layer is trained apart from the embeddings.
        lora_head: trained: with tune lora, a masked model's head is trained, too.
        lora_a: frozen: with tune lora, the first matrix of each adapter is not trained.
    """

    model: str
    method: str
    batch_size: int
    sequence_length: int
    dtype: str = "float32"
    compute: str = "float32"
    tune: str = ""
    token_budget: int = 0
    tie_embeddings: bool = True
    lora_head: str = "frozen"
    lora_a: str = "trained"

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, "sequence_length": 1, "token_budget": 0}.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.batch_size * self.sequence_length > MOST_TOKENS:
            raise UsageError(
                f"{self.batch_size} x {self.sequence_length} tokens are no batch: give smaller sizes"
            )
        known = {"dtype": DTYPES, "compute": losses.COMPUTE, "tune": ("", *text_classifier.TUNES)}
        known |= {"lora_head": text_classifier.LORA_HEADS, "lora_a": text_classifier.LORA_A}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}: give one of {', '.join(filter(None, values))}"
                )
        if self.compute != "float32" and self.dtype != "float32":
            raise UsageError(
                f"compute {self.compute} is for float32 weights: leave it out with dtype {self.dtype}"
            )
        variant(self.method)
        if self.lora_head == "trained" and self.trained != "lora":
            raise UsageError(f"lora_head trained is for tune lora, not {self.trained}: leave it out")
        if self.lora_a == "frozen" and self.trained != "lora":
            raise UsageError(f"lora_a frozen is for tune lora, not {self.trained}: leave it out")
        longest = model_catalogue.positions(random_models.config_of(self.model))
        if self.sequence_length > longest:
            raise UsageError(
                f"sequence_length is {self.sequence_length}, but {self.model} knows {longest} positions: "
                "give a shorter one"
            )

    @property
    def trained(self) -> str:
        return self.tune or variant(self.method).tune

    @property
    def untied(self) -> bool:
        """Whether the head is a whole output layer apart from the embeddings."""
        return self.lora_head == "trained" or (self.trained == "full" and not self.tie_embeddings)

    @property
    def notes(self) -> list[str]:
        half = self.dtype != "float32" and self.method != "inference"
        return [HALF_PRECISION.format(dtype=self.dtype)] if half else []


class ZeroNoise(Noise):
    def unit(self, count: int, *counter: int) -> np.ndarray:
        return np.zeros(count)


class NoiselessStandInBudget(StandInBudget):
    """Draws no noise, whose memory is one chunk at a time: it takes the first chunk of each tensor only."""

    def __init__(self, setting: Setting, noise_scale: float, unit: str = "example") -> None:
        super().__init__(setting, noise_scale, unit=unit)
        self._noise = ZeroNoise(setting.mechanism, noise_scale, "float", self.key.stream("noise"))

    def release_(self, clipped_sums: Sequence[Tensor], clip: float, unit: str = "example") -> None:
        super().release_([total.view(-1)[:CHUNK] for total in clipped_sums], clip, unit)


def build_model(workload: Workload, device: str) -> random_models.Answering:
    """Random float32 weights, with `requires_grad` and activation checkpointing as the workload says."""
    model = random_models.build(workload.model, device=device, untied=workload.untied)
    if workload.trained != "full":
        own = variant(workload.method)
        how: dict[str, Any] = {"lora_head": workload.lora_head, "lora_a": workload.lora_a}
        how |= own.network if workload.trained == own.tune else {}
        text_classifier.select_trainable(model, workload.trained, **how)
        model.freeze_vocabulary()
    if variant(workload.method).checkpointing:
        _checkpoint_activations(model)
    return model


def build_method(
    method: Variant,
    model: random_models.Answering,
    loss: losses.CrossEntropy,
    batch_size: int,
    budget_class: type[StandInBudget] = StandInBudget,
) -> Any:
    """The method of a variant on a model; `budget_class` is the class of a private method's stand-in budget.

    Raises:
        ValueError: the method refuses the model.
    """
    if method.method == "public":
        return NaiveStep(model)
    method_card = card(method.method)
    budget_or_size = budget_class.for_batches(batch_size) if method_card.private else batch_size
    return method_card.load()(model, loss, budget_or_size, seed=0, **method.settings)


class Loaded:
    """A workload with its model, batch and method. Raises ValueError if the method refuses the model."""

    def __init__(self, workload: Workload, model: random_models.Answering) -> None:
        self.workload, self.variant, self.model = workload, variant(workload.method), model
        size, length = workload.batch_size, workload.sequence_length
        self.batch = _stand_in(size, length)
        self.loss = PhaseLoss(workload.token_budget or size * length, workload.compute)
        self.method: Any = None
        if self.variant.method != "zero_shot":
            self.method = build_method(self.variant, model, self.loss, size, NoiselessStandInBudget)
        for group in self.method.optimizer.param_groups if self.rest == "backward" else ():
            group[self.variant.implementation] = True
        self._watch()
        if workload.dtype != "float32":  # after the method, which would refuse them
            for tensor in [*self.model.parameters(), *self.model.buffers()]:
                if tensor.dtype == torch.float32:
                    tensor.data = tensor.data.to(DTYPES[workload.dtype])

    @property
    def rest(self) -> str:
        """The phase of whatever is in no other."""
        return "backward" if hasattr(self.method, "optimizer") else "perturb"

    @torch.no_grad()
    def forward(self) -> None:
        """Plain inference on the batch."""
        self.loss(self.model, self.batch)

    def steps(self, phases: Phases) -> None:
        """Two steps if an optimizer creates its state in the first, else one."""
        self.loss.phases = phases
        if self.method is None:
            self.forward()
            return
        for _ in range(1 if self.variant.settings.get("optimizer", "sgd") == "sgd" else 2):
            self.method.step(self.batch)

    def _watch(self) -> None:
        """Make functions of the method phases of the tracker that `steps` was given last."""
        if self.variant.method == "public":
            self._mark("forward", self.method, "_losses")
            self._mark("update", self.method, "_update")
        elif self.rest == "backward":
            self._mark("update", self.method.optimizer, "step")
        elif self.method is not None:
            perturbation = self.method.perturbation
            self._mark("update", perturbation, "apply", lambda: perturbation.update_planned)

    def _mark(
        self, phase: str, owner: object, attribute: str, applies: Callable[[], bool] = lambda: True
    ) -> None:
        work = getattr(owner, attribute)

        def watched(*arguments: Any, **named: Any) -> Any:
            assert self.loss.phases is not None
            with self.loss.phases.phase(phase if applies() else self.rest):
                return work(*arguments, **named)

        setattr(owner, attribute, watched)


def _stand_in(size: int, length: int) -> Examples:
    """Texts of one length; one is a token shorter, because every real batch has padding and so a mask."""
    lengths = [length] * (size - 1) + [max(1, length - 1) if size > 1 else length]
    return Examples.from_token_ids([np.ones(n, np.int32) for n in lengths], np.zeros(size, np.int64))


class PhaseLoss(losses.CrossEntropy):
    """A loss whose passes through the model are the phase `forward`. Micro-batches have the batch's shapes."""

    phases: Phases | None = None

    def cut(self, model: nn.Module, batch: Examples) -> Sequence[Cut]:
        return batch_shapes(batch, self.token_budget)

    def _losses(self, model: nn.Module, part: Examples, length: int) -> Tensor:
        with self.phases.phase("forward") if self.phases else nullcontext():
            return super()._losses(model, part, length)


def _checkpoint_activations(model: random_models.Answering) -> None:
    """Layers in training mode, which transformers asks for; the architectures have no dropout."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True


def track(loaded: Loaded, inference: Tracker, peaks: Tracker, repeats: int = 1) -> dict[str, Any]:
    """Run inference, then steps, each under its tracker. Returns the bytes that every measurement reports."""
    for tracker in (inference, peaks):
        if isinstance(tracker, LiveStorage):
            tracker.add_model(loaded.model)
    with inference:
        loaded.forward()
    with peaks:
        for _ in range(repeats):
            loaded.steps(peaks)
    parameters = list(loaded.model.parameters())
    return {
        "weights_bytes": weights_bytes(loaded.model),
        "inference_peak_bytes": inference.peak,
        "peak_bytes": peaks.peak,
        "peak_over_inference": round(peaks.peak / inference.peak, 4),
        "phase": peaks.phase_of_peak,
        "operation": peaks.operation,
        "phases": dict(peaks.peaks),
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }
