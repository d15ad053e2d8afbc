"""Texts that come from files and users, made fit for a line of a terminal or a page."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["printable", "shortened", "shown"]


def printable(text: object) -> str:
    """The text on one line, with the control characters that a file name or a message may hold as escapes.

    >>> printable("a\\nb")
    'a\\\\nb'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def shortened(text: str, width: int) -> str:
    """In at most so many characters, without its middle: names of layers differ there least.

    >>> shortened("layers.10.attention.weight", 12)
    'layers…eight'
    """
    return text if len(text) <= width else f"{text[: width // 2]}…{text[len(text) - (width - width // 2 - 1) :]}"


def shown(number: Any, share: bool = False) -> str:
    """A number in few characters.

    >>> shown(0.000123), shown(1234567), shown(0.25, share=True), shown(float("nan"))
    ('0.000123', '1.23e+06', '25%', '–')
    """
    if number is None or math.isnan(number):
        return "–"
    return f"{100 * number:.3g}%" if share else f"{number:.3g}"
