"""Which parameters are trainable: the same choices for every method."""

from __future__ import annotations

from typing import Any

from ...errors import UsageError

TUNES = ("full", "bias", "lora", "prefix", "head")
LORA_TARGETS = {"bert": ["query", "value"], "roberta": ["query", "value"]}  # others: q_proj and v_proj
LORA_RANK, LORA_ALPHA = 8, 16  # as in MeZO and DPZero


def select(model: Any, tune: str, seed: int = 0) -> None:
    """Set `requires_grad` on the parameters of a Classifier or TextScorer.

    Args:
        model: with `backbone` and `head`.
        tune: full: all parameters; only then a tied head stays tied. bias: every bias (in a model without
            biases, the gains of its norms) and the head. lora: rank-8 adapters on query and value. prefix:
            five keys and values in every layer (`prefix_tuning`). With these two an encoder's head is
            trainable; a head copied from the model's output layer is not, as in the code of MeZO. head: the
            head alone; of a TextScorer its output layer, which may be its table of embeddings.
        seed: of the start of a prefix.
    """
    if tune not in TUNES:
        raise UsageError(f"tune is {tune!r}: give one of {', '.join(TUNES)}")
    body = [(name, p) for name, p in model.named_parameters() if not name.startswith("head.")]
    has_biases = any(name.endswith("bias") for name, _ in body)
    for name, parameter in body:
        is_bias = name.endswith("bias") if has_biases else "norm" in name
        parameter.requires_grad_(tune == "full" or (tune == "bias" and is_bias))
    if tune in ("lora", "prefix") and getattr(model, "kind", None) in ("masked", "causal"):
        model.head.requires_grad_(False)
    if tune == "head":
        model.head.requires_grad_(True)
    if tune == "prefix":
        from . import prefix_tuning

        prefix_tuning.attach(model.backbone, seed)
    if tune == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        targets = LORA_TARGETS.get(model.backbone.config.model_type, ["q_proj", "v_proj"])
        config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=targets)
        inject_adapter_in_model(config, model.backbone)
