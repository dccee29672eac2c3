"""HTML pages from templates. A page is one file that loads nothing else, so the KFP UI, MLflow and browsers all show it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

STYLE_PATH = Path(__file__).with_name("style.css")


def render(template: Path, **values: Any) -> str:
    """Fill a Jinja template, which may also use `style`, the style sheet of all pages. A missing value is an error.

    Every value is escaped, unless the template marks it as safe.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template.read_text()).render(style=STYLE_PATH.read_text(), **values)


def data_uri(picture: bytes) -> str:
    """Return a PNG or SVG as a `data:` URI, which makes the picture a part of the page."""
    kind = "png" if picture.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
