"""The variants of methods that are compared in memory and step time. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import UsageError, unknown

STEP = {"learning_rate": 1e-9}  # so small that the weights stay what they are
NOISE = {"clip": 1.0, **STEP}


@dataclass(frozen=True)
class Variant:
    """One line of a comparison. `method` is a method's file, or `public`: the step that public code takes.

    Args:
        tune: full, bias, lora, prefix or head.
        checkpointing: whether a layer's activations are computed again in the backward pass.
        implementation: of torch's optimizer: foreach, which CUDA takes by default, or fused.
    """

    title: str
    method: str
    settings: dict = field(default_factory=dict)
    tune: str = "full"
    checkpointing: bool = False
    implementation: str = "foreach"


ADAMW, SGD = STEP | {"optimizer": "adamw"}, STEP | {"optimizer": "sgd"}
GHOST, HOOKS = NOISE | {"clipping": "ghost"}, NOISE | {"clipping": "hooks"}
LOW_RANK, ON_READ = {"direction_law": "low_rank"}, {"perturb": "on_read"}

VARIANTS = {
    "inference": Variant("inference", "zero_shot"),
    "dpzero": Variant("DPZero", "dpzero", NOISE),
    "dpzero_sphere": Variant("DPZero, sphere", "dpzero", NOISE | {"direction_law": "sphere"}),
    "dpzero_signs": Variant("DPZero, signs", "dpzero", NOISE | {"direction_law": "rademacher"}),
    "dpzero_low_rank": Variant("DPZero, rank 1", "dpzero", NOISE | LOW_RANK),
    "dpzero_on_read": Variant("DPZero, perturbed on read", "dpzero", NOISE | ON_READ),
    "dpzero_low_rank_on_read": Variant(
        "DPZero, rank 1, in the linears", "dpzero", NOISE | LOW_RANK | ON_READ
    ),
    "dpzero_lora": Variant("DPZero, LoRA", "dpzero", NOISE, tune="lora"),
    "dp_aggzo": Variant("DP-AggZO, 4 directions", "dp_aggzo", NOISE | {"directions": 4}),
    "dp_zo": Variant("DP-ZO", "dp_zo", NOISE),
    "dp_zoso": Variant("DP-ZOSO", "dp_zoso", NOISE),
    "mezo": Variant("MeZO", "mezo", STEP),
    "public": Variant("public-style step", "public"),
    "sgd": Variant("SGD", "fine_tuning", SGD),
    "adamw": Variant("AdamW", "fine_tuning", ADAMW),
    "adamw_fused": Variant("AdamW, fused", "fine_tuning", ADAMW, implementation="fused"),
    "adamw_checkpointing": Variant("AdamW, checkpointing", "fine_tuning", ADAMW, checkpointing=True),
    "lora": Variant("LoRA (AdamW)", "fine_tuning", ADAMW, tune="lora"),
    "dp_sgd_hooks": Variant("DP-SGD, per-sample gradients", "dp_sgd", HOOKS),
    "dp_sgd_ghost": Variant("DP-SGD, ghost norms", "dp_sgd", GHOST),
    "dp_adamw_hooks": Variant("DP-AdamW, per-sample gradients", "dp_sgd", HOOKS | {"optimizer": "adamw"}),
    "dp_adamw_ghost": Variant("DP-AdamW, ghost norms", "dp_sgd", GHOST | {"optimizer": "adamw"}),
    "dp_lora": Variant(
        "DP-LoRA (DP-AdamW), per-sample gradients", "dp_sgd", HOOKS | {"optimizer": "adamw"}, "lora"
    ),
    "dp_lora_ghost": Variant(
        "DP-LoRA (DP-AdamW), ghost norms", "dp_sgd", GHOST | {"optimizer": "adamw"}, "lora"
    ),
}


def variant(name: str) -> Variant:
    """The variant of a name, in which hyphens count as underscores. Raises UsageError for an unknown one."""
    return VARIANTS[canonical(name)]


def canonical(name: str) -> str:
    key = str(name).replace("-", "_")
    if key not in VARIANTS:
        raise UsageError(unknown("method", name, VARIANTS))
    return key
