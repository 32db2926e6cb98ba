"""Just Fine-tune Twice (Shi et al., EMNLP 2022, arXiv 2204.07667): selective privacy, of the sensitive words alone.

1. Fine-tune without noise on the training rows from which a policy has taken the sensitive words.
2. Fine-tune the result on the rows as they are, with DP-SGD.

Selective privacy has other neighbours than the methods beside it: data sets of equally many rows, which are the same after the policy
and differ in the sensitive words of one row. Their first passes are the same, and the second replaces one row by another, so
that its budget needs the adjacency replace_one. No epsilon of a whole row holds, whatever the second pass adds.

What selective epsilon does not promise:
* anything about the words that the policy leaves: the first pass may memorise them, and whether somebody is in the data;
* anything about a sensitive word that the policy misses, since the first pass reads it without noise. The paper's
  remedy, light noise in the first pass amplified by the miss rate, holds only if words are missed at random with a known
  probability, which no policy can promise, and is not here;
* that a sensitive word cannot be guessed: from its context, its place, or other rows that repeat it, of which only one may differ.

Followed: the paper's algorithm and the description of its public code, in which the first pass is fine-tuning with AdamW. Theirs
finds sensitive words by spaCy's entities; the policies here are regular expressions (`language/data/redaction.py`), named and
public, whose miss rate is unknown. The paper's tables were not read.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from baselines.dp_sgd import DPSGD
from baselines.fine_tuning import FineTuning
from dpzero.privacy import Budget, RunKey
from dpzero.privacy.sampling import WithoutReplacement
from dpzero.zeroth_order.protocols import PartitionedLoss


class JFT(DPSGD):
    """DP-SGD that begins where fine-tuning on redacted rows has ended.

    Args:
        redaction: the policy by which `first_pass` expects its rows redacted.
        first_steps, first_learning_rate: of the first pass, with AdamW and batches of the budget's size.
        optimizer, learning_rate, clip: of the second pass.
    """

    title = "JFT"

    def __init__(
        self,
        model: nn.Module,
        loss: PartitionedLoss,
        budget: Budget,
        *,
        learning_rate: float,
        clip: float,
        redaction: Literal["numbers", "numbers_and_names"] = "numbers_and_names",
        first_steps: int = 100,
        first_learning_rate: float = 1e-3,
        optimizer: Literal["adamw", "adam", "sgd"] = "sgd",
        seed: int = 0,
    ) -> None:
        settings: dict[str, Any] = {"learning_rate": learning_rate, "optimizer": optimizer}
        super().__init__(model, loss, budget, clip=clip, seed=seed, **settings)
        if budget.unit != "example":
            raise ValueError(f"unit {budget.unit}: selective privacy is of the words of one example")
        self.redaction, self.first_steps, self.first_learning_rate = (
            redaction,
            first_steps,
            first_learning_rate,
        )
        self.first_batches = RunKey.published(seed).stream("first pass")
        budget.record_selective()
        self.forwards_before = 0  # of examples, in the first pass

    def first_pass(self, redacted: Any) -> None:
        """Fine-tunes without noise. `redacted`: the training rows after the policy; indices give a batch."""
        size = min(self.budget.batch_size, len(redacted))
        sampler = WithoutReplacement(len(redacted), size, self.first_batches)
        tuning = FineTuning(self.model, self.loss, size, learning_rate=self.first_learning_rate)
        for step in range(self.first_steps):
            tuning.step(redacted[sampler.batch(step)])
        self.forwards_before = self.first_steps * size * tuning.forwards_per_example
