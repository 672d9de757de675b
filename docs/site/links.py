"""Links of the pages to files of the repository that are no pages: on the site they are names, since it has no such
files; in the repository they lead there."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./[^)]*)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return OUTSIDE.sub(r"\1", markdown)
