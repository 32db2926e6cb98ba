"""Answers that are continued text: candidates of any length by their likelihood, and answers that a model writes itself.

For tasks whose candidates differ from row to row, and for label words of more than one token. A candidate's score is the mean
log-probability of its tokens behind the prompt (Malladi et al., 2023).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UsageError
from ..models import generation, prefix_cache
from ..models.batch_invariance import Cutter, Kind
from ..models.losses import COMPUTE
from ..models.tokenizers import Marks, marks
from . import tasks
from .datasets import ALL, Draw, Row
from .encoding import Examples, cache_file, read_arrays, write
from .prompts import answered, cut_left
from .questions import answers_of, column, prompt_of, shown


@dataclass(frozen=True)
class Continuations:
    """n examples of one or more candidates each. Indexing with an index array gives a batch."""

    candidates: Examples  # prompt and candidate of all examples, one after the other; `labels`: how many tokens are the candidate's
    first: np.ndarray  # int64 [n + 1]: where each example's candidates begin
    right: np.ndarray  # bool, one for each candidate
    references: np.ndarray  # str [n]: the right answers' texts, as JSON

    @classmethod
    def of(cls, examples: Sequence[Sequence[tuple[Sequence[int], int, bool]]], references: Sequence[str]):
        """`examples`: of each, its candidates as (token ids, how many are the candidate's, whether it is right)."""
        flat = [candidate for example in examples for candidate in example]
        first = np.concatenate([[0], np.cumsum([len(example) for example in examples])]).astype(np.int64)
        sequences = Examples.of([ids for ids, _, _ in flat], [count for _, count, _ in flat])
        right = np.array([is_right for _, _, is_right in flat], bool)
        return cls(sequences, first, right, np.array(references, str))

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Continuations:
        own = {key: arrays[key] for key in ("first", "right", "references")}
        return cls(Examples(**{key: array for key, array in arrays.items() if key not in own}), **own)

    def arrays(self) -> dict[str, np.ndarray]:
        own = {"first": self.first, "right": self.right, "references": self.references}
        return {**self.candidates.arrays(), **own}

    @property
    def token_count(self) -> int:
        return self.candidates.token_count

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, indices: np.ndarray) -> Continuations:
        chosen = [np.arange(self.first[i], self.first[i + 1]) for i in indices]
        rows = np.concatenate([*chosen, np.zeros(0, np.int64)]).astype(np.int64)
        first = np.concatenate([[0], np.cumsum([len(c) for c in chosen])]).astype(np.int64)
        return Continuations(self.candidates[rows], first, self.right[rows], self.references[indices])

    def parts(self, token_budget: int) -> Iterator[tuple[np.ndarray, Continuations]]:
        """Micro-batches of whole examples, at most token_budget padded tokens each (or one example): (positions, examples)."""
        lengths, counts = self.candidates.lengths(), np.diff(self.first)
        longest = np.array([lengths[a:b].max() for a, b in zip(self.first, self.first[1:], strict=False)])
        chosen: list[int] = []
        for i in np.argsort(longest, kind="stable")[::-1]:
            if chosen and (counts[chosen].sum() + counts[i]) * longest[chosen[0]] > token_budget:
                yield np.array(chosen), self[np.array(chosen)]
                chosen = []
            chosen.append(int(i))
        if chosen:
            yield np.array(chosen), self[np.array(chosen)]

    def gold(self) -> np.ndarray:
        """The position, among its own candidates, of each example's first right one, int64 [n]."""
        spans = zip(self.first, self.first[1:], strict=False)
        return np.array([int(self.right[a:b].argmax()) for a, b in spans], np.int64)


class ContinuationLoss:
    """(model, examples) -> losses [B], float32: of one candidate its mean negative log-probability a token, of several the cross
    entropy over their scores. `generate`: the tokens that a model may write where F1 is the metric."""

    share = 0, 1  # as of `CrossEntropy`

    def __init__(
        self, token_budget: int, compute: str = "float32", mark: Marks | None = None, generate: int = 0
    ) -> None:
        if compute not in COMPUTE:
            raise ValueError(f"compute is {compute!r}: give one of {', '.join(COMPUTE)}")
        self.token_budget, self.compute, self.mark, self.generate = token_budget, compute, mark, generate
        self.cutter = Cutter(token_budget)

    def parts(self, batch: Continuations) -> Iterator[Continuations]:
        """The micro-batches in which a first-order method takes its gradients."""
        for _, part in batch.parts(self.token_budget):
            yield part

    def __call__(self, model: nn.Module, batch: Continuations) -> Tensor:
        found = torch.zeros(len(batch), device=next(model.parameters()).device)
        first, every = self.share
        mine = np.arange(len(batch))[first::every]
        if torch.is_grad_enabled():
            for order, part in batch[mine].parts(self.token_budget):
                found[torch.from_numpy(mine[order]).to(found.device)] = _losses(
                    self.scores(model, part), part
                )
        elif len(mine):
            part = batch[mine]
            found[torch.from_numpy(mine).to(found.device)] = _losses(
                self._own_scores(model, part.candidates), part
            )
        return found

    def owners(self, part: Continuations) -> np.ndarray:
        """Whose each row is that the model is given for a micro-batch of `parts`: positions in it, int64 [rows]."""
        [(order, inner)] = part.parts(self.token_budget)
        return np.repeat(order, np.diff(inner.first))

    def scores(self, model: nn.Module, part: Continuations) -> Tensor:
        """The mean log-probability of each candidate, float32, one after the other."""
        return self._scores(model, part.candidates)

    def _own_scores(self, model: nn.Module, rows: Examples) -> Tensor:
        """The same, to the last bit a function of each candidate alone (see `invariant`)."""

        def made(kinds: Sequence[Kind]) -> Tensor:
            texts = rows.stand_ins(model, kinds)
            counts = np.minimum([answer for _, _, answer in kinds], texts.lengths() - 1)
            length, _, answer = kinds[0]
            return self._scores(model, replace(texts, labels=counts), length, answer)

        answers = [1 << (int(count) - 1).bit_length() for count in rows.labels]
        kinds = [(*kind, n) for kind, n in zip(rows.kinds(model), answers, strict=True)]
        found = torch.zeros(len(rows), device=next(model.parameters()).device)
        for order, filled, (length, _, answer) in self.cutter.cut(model, kinds, made):
            scores = self._scores(model, rows[filled], length, answer)
            found[torch.from_numpy(order).to(found.device)] = scores[: len(order)]
        return found

    def _scores(self, model: nn.Module, rows: Examples, length: int = 0, answer: int = 0) -> Tensor:
        """Of each row, padded to `length` tokens and `answer` of its candidate, or to the longest."""
        device = next(model.parameters()).device
        ids, mask, counts = rows.padded(device, length)
        steps = torch.arange(answer or int(counts.max()), device=device)
        asked = steps < counts[:, None]
        # of the answer's tokens; each is foretold by the one before it
        positions = torch.where(asked, (mask.sum(1) - counts)[:, None] + steps, 1)
        half = self.compute == "bfloat16"
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            logits = model(ids, mask, positions - 1)
        likely = logits.float().log_softmax(-1).gather(2, ids.gather(1, positions)[..., None])[..., 0]
        return (likely * asked).sum(1) / counts

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Continuations) -> dict[str, float]:
        """Mean loss of the first right answers, and accuracy of the likeliest candidate or, where a model writes, F1."""
        right, loss, f1 = 0, 0.0, 0.0
        candidates = examples.candidates
        with prefix_cache.once(model, candidates, int(candidates.labels.max()) + 1):
            for _, part in examples.parts(self.token_budget):
                groups = self.scores(model, part).split(np.diff(part.first).tolist())
                for scores, start, gold in zip(groups, part.first, part.gold(), strict=False):
                    loss -= float(scores[gold])
                    right += bool(part.right[start + int(scores.argmax())])
        if self.generate:
            f1 = sum(self._f1(model, part) for _, part in examples.parts(self.token_budget))
        metric = {"f1": f1} if self.generate else {"accuracy": right}
        return {key: value / len(examples) for key, value in (metric | {"loss": loss}).items()}

    def _f1(self, model: nn.Module, part: Continuations) -> float:
        """The sum over examples of one candidate each."""
        prompts = [part.candidates.ids(i)[: -int(count)] for i, count in enumerate(part.candidates.labels)]
        written = generation.greedy(model, prompts, self.generate, self.mark)
        pairs = zip(written, part.references, strict=True)
        return sum(generation.f1(text, json.loads(str(right))) for text, right in pairs)

    def stand_in(self, size: int, length: int) -> Continuations:
        """Examples of full length that say nothing of private ones."""
        right = json.dumps([""]) if self.generate else ""
        return Continuations.of([[([1] * length, 1, True)]] * size, [right] * size)


def _losses(scores: Tensor, part: Continuations) -> Tensor:
    groups = zip(scores.split(np.diff(part.first).tolist()), part.gold(), strict=True)
    return torch.stack(
        [-group[gold] if len(group) == 1 else group.logsumexp(0) - group[gold] for group, gold in groups]
    )


def encode(task: str, model: str, max_length: int, draw: Draw = ALL) -> dict[str, Continuations]:
    """Each split of the task as the model reads it, from the cache where it is there."""
    path = cache_file(task, model, max_length, draw)
    if not path.exists():
        loaded, mark = tasks.load(task, draw), marks(model)
        made = {
            split: encoded(loaded, rows, mark, max_length, split == "train")
            for split, rows in loaded.splits.items()
        }
        write(path, {split: part.arrays() for split, part in made.items()})
    return {split: Continuations.from_arrays(arrays) for split, arrays in read_arrays(path).items()}


# -- from rows -----------------------------------------------------------------------------------------------------------


def encoded(
    task: tasks.Task, rows: Sequence[Row], mark: Marks, max_length: int, training: bool
) -> Continuations:
    """All candidates of each row, or where its own candidates are trained on, or a model writes, the first right one alone."""
    causal, made, references, before = task.stanza.get("causal", {}), [], [], shown(task)
    generate = causal.get("generate", 0)
    for row in rows:
        prompt, answers = before + prompt_of(task, row), answers_of(task, row)
        references.append(json.dumps(column(row.fields, causal["right"])) if generate else "")
        if generate or (training and not task.answers):
            answers = [next(answer for answer in answers if answer[1])]
        made.append(
            [(*_cut(prompt, text, mark, max_length - generate), is_right) for text, is_right in answers]
        )
    return Continuations.of(made, references)


def _cut(prompt: str, text: str, mark: Marks, max_length: int) -> tuple[list[int], int]:
    ids, count = answered(prompt, text, mark.plain)
    if not 0 < count < max_length - len(mark.first):
        raise UsageError(
            f"the answer {text!r} is {count} tokens where there is room for {max_length}: raise max_length"
        )
    return cut_left(ids, max_length, mark.first), count
