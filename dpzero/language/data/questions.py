"""What a causal model is asked about a row, and what may be answered: text, before any tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import UsageError
from . import prompts
from .columns import column
from .datasets import Row
from .tasks import Task


def prompt_of(task: Task, row: Row) -> str:
    return prompts.filled(task.prompt, {"text": row.text, **row.fields})


def shown(task: Task) -> str:
    """The demonstrations with their answers, a blank line behind each, as MeZO joins them; empty where there are none."""
    answered = []
    for row in task.demonstrations:
        right = next(text for text, is_right in answers_of(task, row) if is_right)
        answered.append((prompt_of(task, row) + right).strip() + "\n\n")
    return "".join(answered)


def answers_of(task: Task, row: Row) -> list[tuple[str, bool]]:
    """(what a candidate appends to the prompt, whether it is right), in the order of the data.

    Raises UsageError for a row that has no right one.
    """
    if task.answers:
        return [(answer, i == row.label) for i, answer in enumerate(task.answers)]
    causal = task.stanza["causal"]
    right = column(row.fields, causal["right"])
    if isinstance(causal["candidates"], list):
        templates = causal["candidates"]
        found = [(prompts.filled(each, row.fields), i == right) for i, each in enumerate(templates)]
    else:
        names = column(row.fields, causal["candidates"])
        found = [(_filled(causal["each"], row.fields, name), name in right) for name in names]
    if not any(is_right for _, is_right in found):
        raise UsageError(
            f"a row of task {task.name} has no right answer among its candidates: {row.text[:60]!r}"
        )
    return found


def _filled(template: str, fields: Mapping, candidate: str) -> str:
    """ReCoRD's queries have a place for the candidate."""
    return prompts.filled(template, {**fields, "candidate": candidate}).replace("@placeholder", candidate)
