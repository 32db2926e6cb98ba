"""The generated prose: templates of the folder `templates` and the values in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2


def render(template: str, values: dict[str, Any], **filters: Callable) -> str:
    """The text of templates/NAME.md.jinja with these values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(f"{template}.md.jinja").render(values)


def sentences(template: str, values: dict[str, Any], **filters: Callable) -> list[str]:
    """The paragraphs of a template, each on one line."""
    paragraphs = render(template, values, **filters).split("\n\n")
    return [" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip()]
