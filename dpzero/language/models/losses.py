"""One loss per example, and the metric of a task: accuracy, or F1 of written answers.

The values do not depend on how a batch is cut into micro-batches.
"""

from __future__ import annotations

import base64
import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.tasks import Task
from . import caches, encoding
from .batch_invariance import Bucket, Cut, Cutter, batch_shapes
from .encoding import Continuations, Examples, TokenizerInfo
from .text_classifier import TextScorer

COMPUTE = ("float32", "bfloat16")


class _Loss:
    """(model, batch) -> losses [B], float32, each a function of its own example alone.

    Without gradients, as in zeroth-order methods, no other example changes a bit of a loss (see
    `batch_invariance`): a two-point estimate divides the difference of two losses by a small number. With
    gradients, micro-batches are those of `parts`.

    With a `share` of (r, n), losses are those of every n-th example from the r-th; the others, which are
    another process's, are 0.
    """

    share = 0, 1

    def __init__(self, token_budget: int, compute: str = "float32") -> None:
        """A loss with micro-batches of token_budget padded tokens.

        With `compute` "bfloat16", matrix products are in bfloat16 (torch's autocast); weights, norms and the
        loss stay in float32.
        """
        if compute not in COMPUTE:
            raise ValueError(f"compute is {compute!r}: give one of {', '.join(COMPUTE)}")
        self.token_budget, self.compute = token_budget, compute
        self.cutter = Cutter(token_budget)

    def parts(self, batch: Any) -> Iterator[Any]:
        """The micro-batches of a first-order method's gradients."""
        for _, part in batch.parts(self.token_budget):
            yield part

    def _own(self, count: int) -> NDArray[np.int64]:
        """The positions of this process's examples in a batch."""
        first, every = self.share
        return np.arange(count)[first::every]

    def precision(self, device: torch.device) -> AbstractContextManager:
        """A context with matrix products of type `compute`, without autocast's cache: a copy of all weights."""
        half = self.compute == "bfloat16"
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if half else nullcontext()


class CrossEntropy(_Loss):
    """The cross entropy of a classifier, for `Examples` or their features."""

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        result = None
        for order, filled, bucket in self.cut(model, batch):
            whole = len(order) == len(filled) == len(batch)
            losses = self._losses(model, batch if whole else batch[filled], bucket[0])[: len(order)]
            if len(order) == len(batch):  # and in order (see `Cut`)
                return losses
            result = losses.new_zeros(len(batch)) if result is None else result
            result[torch.from_numpy(order).to(result.device)] = losses
        return torch.zeros(len(batch), device=next(model.parameters()).device) if result is None else result

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Any) -> dict[str, Any]:
        """Accuracy and mean loss over all examples, in float32, and which are `correct` (see `packed`)."""
        right, total = np.zeros(len(examples), bool), 0.0
        device = next(model.parameters()).device
        with caches.reuse_prefix(model, examples):
            for order, part in examples.parts(self.token_budget):
                ids, mask, labels = part.padded(device)
                logits = model(ids, mask)
                right[order] = (logits.argmax(1) == labels).cpu().numpy()
                total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        return _accuracy(right) | {"loss": total / len(examples)}

    def stand_in(self, size: int, length: int) -> Examples:
        """Examples of full length that say nothing about private ones."""
        return Examples.from_token_ids([[1] * length] * size, [0] * size)

    def cut(self, model: nn.Module, batch: Any) -> Sequence[Cut]:
        """The micro-batches of this process's examples."""
        own = self._own(len(batch))
        batch = batch if len(own) == len(batch) else batch[own]

        def forward(buckets: Sequence[Bucket]) -> Tensor:
            return self._logits(model, batch.stand_ins(model, buckets), buckets[0][0])[0]

        if torch.is_grad_enabled():
            cuts: Sequence[Cut] = batch_shapes(batch, self.token_budget)
        else:
            cuts = self.cutter.cut(model, batch.buckets(model), forward, batch.any_rows)
        if self.share == (0, 1):
            return cuts
        return [(own[order], own[filled], bucket) for order, filled, bucket in cuts]

    def _losses(self, model: nn.Module, part: Any, length: int) -> Tensor:
        return nn.functional.cross_entropy(*self._logits(model, part, length), reduction="none")

    def _logits(self, model: nn.Module, part: Any, length: int) -> tuple[Tensor, Tensor]:
        """Logits, float32 [n, labels], and labels [n]."""
        ids, mask, labels = part.padded(next(model.parameters()).device, length)
        with self.precision(ids.device):
            logits = model(ids, mask)
        return logits.float(), labels


class ContinuationLoss(_Loss):
    """The loss of a model that scores candidate texts, for `Continuations` (Malladi et al., 2023).

    A candidate's score is the mean log-probability of its tokens after the prompt. The loss of one candidate
    is its negative score, of several the cross entropy over their scores. A batch with weights multiplies them.
    """

    def __init__(
        self,
        token_budget: int,
        compute: str = "float32",
        info: TokenizerInfo | None = None,
        max_new_tokens: int = 0,
    ) -> None:
        """With max_new_tokens, `evaluate` lets the model write its answers; `info` is its tokenizer."""
        super().__init__(token_budget, compute)
        self.info, self.max_new_tokens = info, max_new_tokens

    def owners(self, part: Continuations) -> NDArray[np.int64]:
        """The example, in a micro-batch of `parts`, of each row that the model reads: int64 [rows]."""
        [(order, inner)] = part.parts(self.token_budget)
        return np.repeat(order, np.diff(inner.first))

    def __call__(self, model: nn.Module, batch: Continuations) -> Tensor:
        result = torch.zeros(len(batch), device=next(model.parameters()).device)
        own = self._own(len(batch))
        if torch.is_grad_enabled():
            for order, part in batch[own].parts(self.token_budget):
                losses = _gold_losses(self.scores(model, part.candidates), part)
                result[torch.from_numpy(own[order]).to(result.device)] = losses
        elif len(own):
            part = batch[own]
            losses = _gold_losses(self._invariant_scores(model, part.candidates), part)
            result[torch.from_numpy(own).to(result.device)] = losses
        return result if batch.weights is None else result * torch.from_numpy(batch.weights).to(result)

    def _invariant_scores(self, model: nn.Module, rows: Examples) -> Tensor:
        """As `scores`, to the last bit a function of each candidate alone (see `batch_invariance`)."""

        def forward(buckets: Sequence[Bucket]) -> Tensor:
            texts = rows.stand_ins(model, buckets)
            counts = np.minimum([answer for _, _, answer in buckets], texts.lengths() - 1)
            length, _, answer = buckets[0]
            return self.scores(model, replace(texts, labels=counts), length, answer)

        answers = [1 << (int(count) - 1).bit_length() for count in rows.labels]
        buckets = [(*bucket, n) for bucket, n in zip(rows.buckets(model), answers, strict=True)]
        result = torch.zeros(len(rows), device=next(model.parameters()).device)
        for order, filled, (length, _, answer) in self.cutter.cut(model, buckets, forward):
            scores = self.scores(model, rows[filled], length, answer)
            result[torch.from_numpy(order).to(result.device)] = scores[: len(order)]
        return result

    def scores(self, model: nn.Module, rows: Examples, length: int = 0, answer: int = 0) -> Tensor:
        """Scores [n], float32, of rows padded to `length` tokens with room for `answer`; 0: the longest."""
        device = next(model.parameters()).device
        ids, mask, counts = rows.padded(device, length)
        steps = torch.arange(answer or int(counts.max()), device=device)
        in_answer = steps < counts[:, None]
        # positions of the answer's tokens; each is predicted at the position before
        positions = torch.where(in_answer, (mask.sum(1) - counts)[:, None] + steps, 1)
        with self.precision(ids.device):
            logits = model(ids, mask, positions - 1)
        tokens = ids.gather(1, positions)[..., None]
        likelihoods = logits.float().log_softmax(-1).gather(2, tokens)[..., 0]
        return (likelihoods * in_answer).sum(1) / counts

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Continuations) -> dict[str, Any]:
        """Mean loss of the first right answers, and accuracy with `correct` or, if the model writes, F1."""
        right, loss = np.zeros(len(examples), bool), 0.0
        weights = np.ones(len(examples)) if examples.weights is None else examples.weights
        candidates = examples.candidates
        with caches.reuse_prefix(model, candidates, int(candidates.labels.max()) + 1):
            for order, part in examples.parts(self.token_budget):
                groups = self.scores(model, part.candidates).split(np.diff(part.first).tolist())
                for row, scores, start, gold in zip(order, groups, part.first, part.gold(), strict=False):
                    loss -= float(scores[gold]) * float(weights[row])
                    right[row] = part.right[start + int(scores.argmax())]
        mean_loss = {"loss": loss / float(weights.sum())}
        if not self.max_new_tokens:
            return _accuracy(right) | mean_loss
        f1 = sum(self._f1(model, part) for _, part in examples.parts(self.token_budget))
        return {"f1": f1 / len(examples)} | mean_loss

    def _f1(self, model: Any, part: Continuations) -> float:
        """The sum over examples of one candidate each."""
        prompts = [part.candidates.ids(i)[: -int(count)] for i, count in enumerate(part.candidates.labels)]
        assert self.info is not None
        written = generate_answers(model, prompts, self.max_new_tokens, self.info)
        pairs = zip(written, part.references, strict=True)
        return sum(f1(text, json.loads(str(references))) for text, references in pairs)

    def stand_in(self, size: int, length: int) -> Continuations:
        """Examples of full length that say nothing about private ones."""
        right = json.dumps([""]) if self.max_new_tokens else ""
        return Continuations.from_candidates([[([1] * length, 1, True)]] * size, [right] * size)


def packed(bits: NDArray[np.bool_]) -> str:
    """Bits [n], eight a byte (numpy.packbits), the last byte filled with zeros, in base64."""
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def _accuracy(right: NDArray[np.bool_]) -> dict[str, Any]:
    return {"accuracy": int(right.sum()) / len(right), "correct": packed(right)}


def _gold_losses(scores: Tensor, part: Continuations) -> Tensor:
    """[n]: from the scores of all candidates."""
    groups = zip(scores.split(np.diff(part.first).tolist()), part.gold(), strict=True)
    return torch.stack(
        [-group[gold] if len(group) == 1 else group.logsumexp(0) - group[gold] for group, gold in groups]
    )


# -- written answers ----------------------------------------------------------------------------------------


@torch.no_grad()
def generate_answers(
    model: TextScorer, prompts: Sequence[NDArray], max_new_tokens: int, info: TokenizerInfo
) -> list[str]:
    """What the model writes after each prompt, int [L], by greedy decoding.

    A text ends with its line, with the model's end of text, or after max_new_tokens. Prompts of a batch are
    padded on the left.
    """
    longest = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
    device = next(model.parameters()).device
    end_of_text = model.language_model.generation_config.eos_token_id
    if not isinstance(end_of_text, list):
        end_of_text = [] if end_of_text is None else [end_of_text]
    stops = sorted({*info.encode("\n")[:1], *end_of_text})
    written = model.language_model.generate(
        input_ids=torch.from_numpy(ids).to(device),
        attention_mask=torch.from_numpy(mask).to(device),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=0,
    )
    texts = []
    for tokens in written[:, longest:].tolist():
        end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
        texts.append(info.decode(tokens[: end + 1]).strip())  # after the first stop is padding
    return texts


def f1(written: str, references: Sequence[str]) -> float:
    """The best F1 of words over the references, as for SQuAD (Rajpurkar et al., 2016).

    "no answer" must be written exactly.
    """
    if references[0] in ("CANNOTANSWER", "no answer"):
        return float(normalized(written) == normalized(references[0]))
    return max(_overlap(normalized(written), normalized(reference)) for reference in references)


def normalized(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _overlap(written: list[str], reference: list[str]) -> float:
    same = sum((Counter(written) & Counter(reference)).values())
    return 2 * same / (len(written) + len(reference)) if same else 0.0


# -- the loss of a task --------------------------------------------------------------------------------------


def make_loss(
    task: Task, model: str, token_budget: int, compute: str = "float32", scores_text: bool | None = None
) -> CrossEntropy | ContinuationLoss:
    """The per-example loss of a model on a task.

    Args:
        task: decides, with the model, between label words at one position and candidate texts.
        model: a name of models.yaml.
        token_budget: padded tokens of a micro-batch.
        compute: the type of matrix products, "float32" or "bfloat16".
        scores_text: whether texts are scored, if it is known (the tokenizer of a causal model says it).
    """
    if scores_text is None:
        scores_text = encoding.scores_text(model, task)
    if not scores_text:
        return CrossEntropy(token_budget, compute)
    info = encoding.tokenizer_info(model) if task.max_new_tokens else None
    return ContinuationLoss(token_budget, compute, info, task.max_new_tokens)
