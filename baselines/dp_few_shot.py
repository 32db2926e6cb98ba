"""Private in-context learning: demonstrations are written under differential privacy (Tang et al., ICLR 2024, arXiv 2309.11765).

A step writes one token of a demonstration with label c, from the Poisson batch of the step:
    w = the public words of c and the tokens written so far; V = the `vocabulary` likeliest next tokens after w alone
    p_i = the probabilities, over V, of the token after (example i, w), for each example i of the batch that has label c
    token = argmax over V of sum_i clip(p_i) + noise          (noise: N(0, I) noise_scale clip)

A demonstration ends with its line, or after `longest` tokens; the next then begins, for the next label in turn. `steps` are
the tokens of all demonstrations together. They stand before every query, as training rows do in in-context learning, so
that any number of queries costs one epsilon, and nothing is trained.

Sensitivity. p_i is not negative and sums to 1, so that its norm is at most 1, and at most `clip` if that is less. It depends
on example i, public words and earlier releases. One example more or less moves the sum by `clip` at most in norm, and the
next token is post-processing. Every token is a release of the ledger. All are counted for every example, though with
`same_label` an example takes part in those of its own label alone: epsilon is above the true one.

The paper's code (`microsoft/dp-few-shot-generation`, commit 4e7b6a5) was followed for the prompts, which name the label before
the text, the restriction to publicly likely tokens (V, "RVP"), a new batch for each token and examples of the same label.
Departures: it draws a fixed number of examples without replacement, by a seed that is public, divides them into M
prompts and accounts for Poisson batches, at the sensitivity sqrt(2) / M of one that is replaced. The members of a prompt
of several examples follow from who else is drawn, and Poisson batches vary in size. Here a prompt has one example,
as in its runs on TREC. Its exponential mechanism is left out. The wording of the prompts is ours.

The sibling of Wu et al. (ICLR 2024, arXiv 2305.01639), a noisy vote of prompts for each query, pays for every query. We do not run it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpzero.language.models.encoding import Examples
from dpzero.language.models.text_classifier import next_token_logits
from dpzero.privacy import Budget, check_clip
from dpzero.privacy.clipping import clip_factors
from dpzero.zeroth_order.protocols import PerExampleLoss


class DPFewShot:
    """`prompts` are assigned before the first step: the token ids of the public words of each label.

    Batches are `Examples` of a causal model: an example's label and text, as tokens. `stops`: tokens that end a line.

    Raises:
        ValueError: a setting out of range, a budget for users, Laplace or exact noise.
    """

    title = "DP few-shot generation"
    private = True
    order = None
    forwards_per_example = 1
    public_forwards = 1
    contract_settings = {"same_label": False}  # the suite's budget is spent on any label

    def __init__(
        self,
        model: nn.Module,
        loss: PerExampleLoss,
        budget: Budget,
        *,
        clip: float = 1.0,
        vocabulary: int = 100,
        longest: int = 12,
        same_label: bool = True,
        seed: int = 0,
    ) -> None:
        """`seed` changes nothing here: batches and noise follow from the budget's key."""
        Budget.require(budget).check_gradients()
        check_clip(clip)
        if vocabulary < 1 or longest < 1:
            raise ValueError("vocabulary and longest must be positive")
        self.model, self.budget, self.clip = model.eval(), budget, clip
        self.vocabulary, self.longest, self.same_label = vocabulary, longest, same_label
        self.token_budget: int = getattr(loss, "token_budget", 2048)
        self.precision = getattr(loss, "precision", lambda device: nullcontext())
        self.prompts: Sequence[Sequence[int]] = [[1]]
        self.stops: frozenset[int] = frozenset()
        self.written: list[list[int]] = [
            []
        ]  # the tokens of each demonstration, the last of which is being written
        self.steps_taken = 0
        self.training_loss: float | None = None

    @torch.no_grad()
    def step(self, batch: Examples) -> int:
        """Writes the next token, and returns it."""
        self.budget.admit(len(batch))
        words = [*self.prompts[self.label], *self.written[-1]]
        with self.precision(next(self.model.parameters()).device):
            tokens = self._likely_tokens(words)
            values = self._probabilities(batch, words, tokens).double()
        values *= clip_factors(values.square().sum(1), self.clip)[:, None]
        released = self.budget.release_vectors(values, self.clip)
        token = int(tokens[int(np.argmax(released))])
        if token in self.stops:
            self.written.append([])
        else:
            self.written[-1].append(token)
            if len(self.written[-1]) == self.longest:
                self.written.append([])
        self.steps_taken += 1
        return token

    @property
    def label(self) -> int:
        """Of the demonstration that is being written."""
        return (len(self.written) - 1) % len(self.prompts)

    @property
    def demonstrations(self) -> list[tuple[int, list[int]]]:
        """(label, token ids) of each demonstration, the last of which may be a beginning."""
        return [(n % len(self.prompts), tokens) for n, tokens in enumerate(self.written) if tokens]

    def _likely_tokens(self, words: Sequence[int]) -> Tensor:
        """The likeliest tokens after public words, int64 [K]; an empty line is not among them."""
        logits = next_token_logits(self.model, Examples.from_token_ids([words], [0]), self.token_budget)[0]
        if not self.written[-1]:
            logits[sorted(self.stops)] = -torch.inf
        return logits.topk(min(self.vocabulary, len(logits))).indices

    def _probabilities(self, batch: Examples, words: Sequence[int], tokens: Tensor) -> Tensor:
        """Of the tokens [K] after each example and the words, [B, K]; 0 for an example of another label."""
        rows = np.flatnonzero(batch.labels == self.label) if self.same_label else np.arange(len(batch))
        result = torch.zeros(len(batch), len(tokens))
        if len(rows):
            texts = Examples.from_token_ids(
                [[*batch.ids(i), *words] for i in rows.tolist()], batch.labels[rows]
            )
            logits = next_token_logits(self.model, texts, self.token_budget)[:, tokens]
            result[torch.from_numpy(rows)] = logits.softmax(1).nan_to_num().cpu()
        return result

    def state_dict(self) -> dict[str, Any]:
        """Steps, budget and, as `parameters`, the tokens that were released."""
        parameters = [torch.tensor(tokens, dtype=torch.int64) for tokens in self.written]
        return {"steps_taken": self.steps_taken, "parameters": parameters, "budget": self.budget.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.budget.load_state_dict(state["budget"])
        self.steps_taken = state["steps_taken"]
        self.written = [tokens.tolist() for tokens in state["parameters"]]
