"""Prompts as token ids: LM-BFF's templates for masked language models, MeZO's for causal ones.

A causal template has columns of a row in braces, each changed by at most one of CHANGES: "{premise:without_period}".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from string import Formatter

from ...errors import UsageError

Tokenize = Callable[[str], list[int]]  # without the tokens that a tokenizer puts around a text


# -- causal: Malladi et al., 2023, `templates.py` ------------------------------------------------------------------------


def _question(text: str) -> str:
    """Ends in a question mark and begins with a capital."""
    text = text if text.endswith("?") else text + "?"
    return text[0].upper() + text[1:]


def _without_period(text: str) -> str:
    return text.rstrip().removesuffix(".")


def _lower_first_word(text: str) -> str:
    first, space, rest = text.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


CHANGES: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "lower": str.lower,
    "question": _question,
    "without_period": _without_period,
    "lower_first_word": _lower_first_word,
    "conjunction": {"effect": "so", "cause": "because"}.__getitem__,
    "as_list": lambda passage: passage.replace("@highlight\n", "- "),
}


def filled(template: str, fields: Mapping) -> str:
    """The template with its columns filled in, whatever braces they hold. KeyError for a column that is not there."""
    made = []
    for literal, column, change, _ in Formatter().parse(template):
        made.append(literal)
        if column is not None:
            made.append(CHANGES[change](str(fields[column])) if change else str(fields[column]))
    return "".join(made)


def columns(template: str) -> list[tuple[str, str]]:
    """(column, its change or nothing) in the order of the template. ValueError for braces that do not match."""
    parts = Formatter().parse(template)
    return [(column, change or "") for _, column, change, _ in parts if column is not None]


def tail(template: str) -> str:
    """What follows the last column."""
    *_, last = ("", None), *((literal, column) for literal, column, _, _ in Formatter().parse(template))
    return last[0] if last[1] is None else ""


def answered(prompt: str, answer: str, tokenize: Tokenize) -> tuple[list[int], int]:
    """Token ids of prompt and answer together, and how many of them are the answer's: what the prompt alone is shorter.

    White space is dropped as in MeZO's `encode_prompt`: any of it before the prompt, spaces behind the answer.
    """
    prompt = prompt.lstrip()
    ids = tokenize((prompt + answer).strip(" "))
    return ids, len(ids) - len(tokenize(prompt.strip(" ")))


def cut_left(ids: Sequence[int], max_length: int, first: Sequence[int]) -> list[int]:
    """`first` (the token that a model begins with, if any) and the last tokens that fit behind it: the answer is never cut."""
    room = max_length - len(first)
    return [*first, *ids[max(0, len(ids) - room) :]]


# -- masked: Gao et al., 2021, `src/dataset.py` --------------------------------------------------------------------------

SENTENCES: dict[str, Callable[[str], str]] = {
    "sent": lambda text: text,
    "+sent": lambda text: " " + text,
    "sent-": lambda text: text[:-1],  # the last character: LM-BFF's own comment says token
    "sentl": lambda text: text[:1].lower() + text[1:],
    "+sentl": lambda text: " " + text[:1].lower() + text[1:],
}


def masked(
    template: str,
    sentences: Sequence[str],
    tokenize: Tokenize,
    special: Mapping[str, int],
    max_length: int,
    limits: Sequence[int | None] = (),
) -> list[int]:
    """Token ids of an LM-BFF template, whose parts are tokenized one by one.

    Args:
        template: "*cls**sent_0*_It_was*mask*.*sep+*": `_` is a space.
        special: ids of cls, mask and sep.
        limits: most tokens of the first sentence and of any other.

    A text that is longer than max_length is cut at its end, as there. Where that would cut off the mask, which there is an error,
    the first sentence is cut instead. Raises UsageError where even that is too long.
    """
    parts = list(_parts(template, sentences, tokenize, special, limits))
    ids = [i for _, tokens in parts for i in tokens]
    if special["mask"] in ids[:max_length]:
        return ids[:max_length]
    excess, made = len(ids) - max_length, []
    for is_first, tokens in parts:
        made += tokens[: max(0, len(tokens) - excess)] if is_first else tokens
    if len(made) > max_length or special["mask"] not in made:
        raise UsageError(
            f"max_length is {max_length}, but the prompt {template} is longer without its first sentence: raise it"
        )
    return made


def _parts(template, sentences, tokenize, special, limits) -> Iterator[tuple[bool, list[int]]]:
    """(whether it is the first sentence, its tokens) of each part of the template."""
    first_limit, other_limit = (*limits, None, None)[:2]
    for part in filter(None, template.split("*")):
        kind, _, number = part.rpartition("_")
        if part.removesuffix("+") in special:
            yield False, [special[part.removesuffix("+")]]
        elif kind in SENTENCES:
            limit = other_limit if int(number) else first_limit
            yield number == "0", tokenize(SENTENCES[kind](sentences[int(number)]))[:limit]
        else:
            yield False, tokenize(part.replace("_", " "))
