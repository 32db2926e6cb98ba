"""Prompt templates: LM-BFF's for masked language models, MeZO's for causal ones.

A causal template has columns of a row in braces, each changed by at most one of TRANSFORMS:
"{premise:without_period}".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any

from ...errors import UsageError

Tokenize = Callable[[str], list[int]]  # without the tokens that a tokenizer puts around a text


# -- causal: Malladi et al., 2023, `templates.py` -----------------------------------------------------------


def _question(text: str) -> str:
    text = text if text.endswith("?") else text + "?"
    return text[0].upper() + text[1:]


def _lower_first_word(text: str) -> str:
    first, space, rest = text.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


TRANSFORMS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "lower": str.lower,
    "question": _question,
    "without_period": lambda text: text.rstrip().removesuffix("."),
    "lower_first_word": _lower_first_word,
    "conjunction": {"effect": "so", "cause": "because"}.__getitem__,
    "as_list": lambda passage: passage.replace("@highlight\n", "- "),
}


def fill(template: str, fields: Mapping[str, object]) -> str:
    """The template with the columns of a row filled in.

    Raises KeyError for a column that the row does not have.
    """
    parts = []
    for literal, column, transform, _ in Formatter().parse(template):
        value = "" if column is None else str(fields[column])
        parts += [literal, TRANSFORMS[transform](value) if transform else value]
    return "".join(parts)


def templates(causal: Mapping[str, Any]) -> list[str]:
    """All templates of the key `causal` of a task's stanza."""
    candidates = causal.get("candidates")
    own = [causal[key] for key in ("prompt", "each") if key in causal]
    return [*own, *candidates] if isinstance(candidates, list) else own


def template_columns(template: str) -> list[tuple[str, str]]:
    """(column, its transform or "") in the order of the template.

    Raises ValueError for braces that do not match.
    """
    parts = Formatter().parse(template)
    return [(column, transform or "") for _, column, transform, _ in parts if column is not None]


def last_literal(template: str) -> str:
    """The text after the last column."""
    *_, (literal, column, _, _) = [("", None, None, None), *Formatter().parse(template)]
    return literal if column is None else ""


def tokenize_answer(prompt: str, answer: str, tokenize: Tokenize) -> tuple[list[int], int]:
    """Token ids of prompt and answer together, and how many of them the answer adds.

    White space is dropped as in MeZO's `encode_prompt`: all of it before the prompt, spaces after the answer.
    """
    prompt = prompt.lstrip()
    ids = tokenize((prompt + answer).strip(" "))
    return ids, len(ids) - len(tokenize(prompt.strip(" ")))


def truncate_left(ids: Sequence[int], max_length: int, prefix: Sequence[int]) -> list[int]:
    """`prefix` and the last tokens that fit after it, so that an answer is never cut."""
    room = max_length - len(prefix)
    return [*prefix, *ids[max(0, len(ids) - room) :]]


# -- masked: Gao et al., 2021, `src/dataset.py` -------------------------------------------------------------

SENTENCES: dict[str, Callable[[str], str]] = {
    "sent": lambda text: text,
    "+sent": lambda text: " " + text,
    "sent-": lambda text: text[:-1],  # the last character: LM-BFF's own comment says token
    "sentl": lambda text: text[:1].lower() + text[1:],
    "+sentl": lambda text: " " + text[:1].lower() + text[1:],
}


def masked_prompt(
    template: str,
    sentences: Sequence[str],
    tokenize: Tokenize,
    special: Mapping[str, int],
    max_length: int,
    limits: Sequence[int] = (),
) -> list[int]:
    """Token ids of an LM-BFF template, whose parts are tokenized one by one.

    A text that is too long is cut at its end, as in LM-BFF. If that would cut off the mask (an error there),
    the first sentence is cut.

    Args:
        template: "*cls**sent_0*_It_was*mask*.*sep+*": `_` is a space.
        sentences: of the row, as numbered in the template.
        tokenize: without special tokens.
        special: ids of cls, mask and sep.
        max_length: in tokens.
        limits: maximum tokens of the first sentence and of any other.

    Raises:
        UsageError: the template without its first sentence is longer than max_length.
    """
    first_limit, other_limit = (*limits, None, None)[:2]
    parts = []  # (whether it is the first sentence, its tokens)
    for part in filter(None, template.split("*")):
        kind, _, number = part.rpartition("_")
        if part.removesuffix("+") in special:
            parts.append((False, [special[part.removesuffix("+")]]))
        elif kind in SENTENCES:
            limit = other_limit if int(number) else first_limit
            parts.append((number == "0", tokenize(SENTENCES[kind](sentences[int(number)]))[:limit]))
        else:
            parts.append((False, tokenize(part.replace("_", " "))))
    excess = sum(len(tokens) for _, tokens in parts) - max_length
    ids = [i for _, tokens in parts for i in tokens][:max_length]
    if special["mask"] not in ids:
        parts = [
            (first, tokens[: max(0, len(tokens) - excess)] if first else tokens) for first, tokens in parts
        ]
        ids = [i for _, tokens in parts for i in tokens]
    if len(ids) > max_length or special["mask"] not in ids:
        raise UsageError(
            f"max_length is {max_length}, but the prompt {template} is longer without its first sentence:"
            " raise it"
        )
    return ids
