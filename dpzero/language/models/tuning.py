"""What is trained: the same switch for every method of a comparison."""

from __future__ import annotations

from torch import nn

from ...errors import UsageError

TUNES = ("full", "bias", "lora", "prefix", "head")
LORA_TARGETS = {"bert": ["query", "value"], "roberta": ["query", "value"]}  # others: q_proj and v_proj
LORA_RANK, LORA_ALPHA = 8, 16  # as in MeZO and DPZero


def select(model: nn.Module, tune: str, seed: int = 0) -> None:
    """Set `requires_grad` on the parameters of a Classifier or of a Continuer.

    full: all; the head is the table of embeddings where the model's own output layer is. With any other a Classifier's head is its own.
    lora: rank-8 adapters on query and value. prefix: five keys and values before every layer's (`prefix`). With these two a head that
    is a copy of the model's output layer stays as it is, as in the code of MeZO; an encoder's, which has none, is trained.
    bias: every bias (in a model without biases, the gains of its norms), and the head. head: the head alone; a Continuer's is its
    output layer, which may be its table of embeddings, too.
    """
    if tune not in TUNES:
        raise UsageError(f"tune is {tune!r}: give one of {', '.join(TUNES)}")
    backbone = model.backbone
    body = [(name, p) for name, p in model.named_parameters() if not name.startswith("head.")]
    biases = [name for name, _ in body if name.endswith("bias")]
    for name, parameter in body:
        parameter.requires_grad_(
            tune == "full" or (tune == "bias" and (name.endswith("bias") if biases else "norm" in name))
        )
    if tune in ("lora", "prefix") and getattr(model, "kind", None) in ("masked", "causal"):
        model.head.requires_grad_(False)
    if tune == "prefix":
        from . import prefix_tuning

        prefix_tuning.attach(backbone, seed)
    if tune == "head":
        model.head.requires_grad_(True)
    if tune == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        targets = LORA_TARGETS.get(backbone.config.model_type, ["q_proj", "v_proj"])
        inject_adapter_in_model(
            LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=targets), backbone
        )
