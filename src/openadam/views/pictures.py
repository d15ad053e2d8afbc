"""What pictures of runs have in common: formats, and colours and lines that most people tell apart."""

from __future__ import annotations

__all__ = ["COLOURS", "STYLES", "WIDE_RANGE", "check_picture_format"]

# Okabe and Ito's colours, which most colour-blind people tell apart; line styles tell near-equal curves apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C6D31")
STYLES = ("-", "--", "-.", ":")
WIDE_RANGE = 30.0  # values that span more than this factor are drawn on a logarithmic axis


def check_picture_format(suffix: str) -> None:
    """Raise ValueError if no picture can be written to a file with this ending."""
    if suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"a picture's file name ends in .png, .pdf or .svg, not in {suffix!r}")
