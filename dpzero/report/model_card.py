"""The model card of an exported model: what it is, how to load it, and its privacy statement."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dpzero.report import records
from dpzero.report.statement import statement
from dpzero.report.template import render


def model_card(file: Path, record: dict[str, Any], usage: str) -> str:
    """The card, Markdown.

    Args:
        file: of the record.
        record: its content.
        usage: Python that loads the model and classifies a text.
    """
    text = statement(records.load([file], [record["run"]]), record["run"])
    text = re.sub("^#", "##", text, flags=re.MULTILINE)  # each heading one level lower
    return render("model_card", {"record": record, "usage": usage, "statement": text})
