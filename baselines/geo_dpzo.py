"""GeoDPZO: DP-AggZO with clips that use the symmetry of an example's slopes along K directions.

No paper was found. This follows the README and the code of `NoNameSha/GeoDPZO` (commit 1d2be6d).

symmetric ("SC"): v_i is mirrored to (v_i, -v_i), clipped to `clip`, and its half is scaled by sqrt(2):
    sqrt(2) clip(v_i, clip / sqrt(2)).  So it is DP-AggZO at the clip C / sqrt(2) and a learning rate sqrt(2) times as large.
localized ("LC"): v_i is sorted, the means of its outermost pairs (least with greatest, and so on inwards) are
    subtracted from them, and the result is clipped. Corrected are the pairs up to the largest jump of |v_j + v_(K-1-j)|.

Both are functions of one example, of norm `clip` at most, so the release is that of DP-AggZO. In the public code
its noise comes from the seed 100 + step (RoBERTa) or from the last direction seed (OPT), which are public.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from .dp_aggzo import DPAggZO


class GeoDPZO(DPAggZO):
    """`correction` names the clip: symmetric or localized. Other arguments: see `DPAggZO`."""

    title = "GeoDPZO"
    contract_settings = {"directions": 2}

    def __init__(
        self,
        *arguments: Any,
        directions: int = 16,
        correction: Literal["symmetric", "localized"] = "symmetric",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(*arguments, directions=directions, seed=seed, **settings)
        if correction not in ("symmetric", "localized"):
            raise ValueError(f"correction is {correction!r}: give symmetric or localized")
        self.correction = correction

    def _clipped(self, vectors: Tensor) -> Tensor:
        if self.correction == "localized":
            return super()._clipped(localized(torch.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)))
        return super()._clipped(math.sqrt(2) * vectors)


def localized(vectors: Tensor) -> Tensor:
    """[B, K] -> [B, K]: without the means of the outermost pairs of each row."""
    ordered, places = vectors.sort(dim=1)
    sums = ordered + ordered.flip(1)  # of place j and place K - 1 - j
    count = vectors.shape[1]
    if count == 1:
        return vectors
    last = sums.abs().diff(dim=1).abs().argmax(1, keepdim=True)
    place = torch.arange(count)
    corrected = torch.where(torch.minimum(place, count - 1 - place) <= last, ordered - sums / 2, ordered)
    return torch.zeros_like(vectors).scatter_(1, places, corrected)
