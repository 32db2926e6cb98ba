"""The model card of an exported model: what it is, how to load it, and its privacy statement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpzero.report import records
from dpzero.report.statement import statement

CARD = """\
---
library_name: transformers
tags: [differential-privacy, dpzero]
---

# {model}, fine-tuned on {task} by {title}

```python
{usage}```

* Task: {task}. {source}
* Base model: {model} (SHA-256 {sha256}).
* Run: `{run}`, reported on the split {split}: {scores}.

{statement}
"""


def model_card(file: Path, record: dict[str, Any], usage: str) -> str:
    """The card, Markdown.

    Args:
        file: of the record.
        record: its content.
        usage: Python that loads the model and classifies a text.
    """
    data, model = record["provenance"]["data"], record["provenance"]["model"]
    metrics = {k: v for k, v in record["metrics"].items() if isinstance(v, float)}
    return CARD.format(
        model=model["title"],
        sha256=model["sha256"],
        task=data["title"],
        source=data["source"],
        title=record["method"]["title"],
        run=record["run"],
        split=record["metrics"]["split"],
        scores=", ".join(f"{name} {value:.4g}" for name, value in metrics.items()),
        usage=usage,
        statement=statement(records.load([file], [record["run"]]), record["run"]).replace("\n#", "\n##"),
    ).replace("\n# Privacy", "\n## Privacy")
