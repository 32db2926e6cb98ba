"""Policies that say which words of a text are sensitive, by regular expressions, and the text without them.

They stand in for the entity recognisers of selective privacy: a policy misses what it has no pattern for, such as a name in
lower case or at the start of a sentence.
"""

from __future__ import annotations

import re
from typing import Any

from .datasets import Row

PLACEHOLDER = "_"  # for each word that is taken out, so that their number stays
ADDRESSES = re.compile(r"\S*@\S+|\bhttps?://\S+|\bwww\.\S+")
NUMBERS = re.compile(r"\S*\d\S*")
# a capitalised word that does not begin the text or a sentence
NAMES = re.compile(r"(?<![.!?:\"'()]\s)(?<!^)(?<![\w'])[A-Z][\w'-]+")
POLICIES = {"numbers": (ADDRESSES, NUMBERS), "numbers_and_names": (ADDRESSES, NUMBERS, NAMES)}


def redact(text: str, policy: str) -> str:
    """The text with the placeholder for each sensitive word."""
    for pattern in POLICIES[policy]:
        text = pattern.sub(PLACEHOLDER, text)
    return text


def redact_row(row: Row, policy: str) -> Row:
    """The row with its text, and each text of its columns, redacted. Its label stays."""
    fields: dict[str, Any] = {
        k: redact(v, policy) if isinstance(v, str) else v for k, v in row.fields.items()
    }
    return row._replace(text=redact(row.text, policy), fields=fields)
