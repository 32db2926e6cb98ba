"""Generated prose and pages: templates of the folder `templates` and the values in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

FOLDER = Path(__file__).with_name("templates")


def render(template: str, values: dict[str, Any], **filters: Callable) -> str:
    """The text of templates/NAME.md.jinja with these values."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(f"{template}.md.jinja").render(values)


def page(template: str, values: dict[str, Any]) -> str:
    """The text of templates/NAME.jinja with these values, which are escaped as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(f"{template}.jinja").render(values)


def sentences(template: str, values: dict[str, Any], **filters: Callable) -> list[str]:
    """The paragraphs of a template, each on one line."""
    paragraphs = render(template, values, **filters).split("\n\n")
    return [" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip()]
