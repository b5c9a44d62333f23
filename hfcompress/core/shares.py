"""Shares in percent, as they stand in a sentence: never rounded to none or all."""

from __future__ import annotations


def share(value: float, decimals: int = 1) -> str:
    """Return a share such as ``3.2%``; one that would be rounded to none as ``less than 0.1%``, and so of all."""
    text, step = f"{value:.{decimals}%}", 10.0**-decimals
    if value > 0 and text == f"{0:.{decimals}%}":
        return f"less than {step:.{decimals}f}%"
    return f"more than {100 - step:.{decimals}f}%" if value < 1 and text == f"{1:.{decimals}%}" else text
