"""One spelling for names that look the same."""

from __future__ import annotations

import unicodedata


def composed(name: str) -> str:
    """The name in Unicode's normal form C: macOS writes é as two characters, most other systems as one."""
    return unicodedata.normalize("NFC", name)
