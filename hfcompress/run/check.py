"""`hfcompress card --check`: what a result and its card claim, found again where the model lies now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from .claims import Check, find_place
from .claims_files import LOADS, file_claims
from .claims_quality import quality_claims
from .claims_recipe import recipe_claims
from .claims_text import text_claims
from .claims_times import BAND, time_claims


def check_card(
    folder: Path,
    *,
    time: bool = True,
    baseline: str | None = None,
    overrides: Sequence[str] = (),
    band: float = BAND,
) -> list[Check]:
    """Find again what the result in `folder` claims, of both models, and whether its card says the same.

    That is the card's text, whether the result is of what its recipe says, files, parameters, operations, the metric
    with all statistics of how the models differ, and with `time` ratios of times, memory and loading. `folder` is a run
    folder, or a model's with the result beside its weights, as a push leaves it; for that one the evaluation split is
    read again from where the result's recipe says, or `overrides` of that recipe. `baseline` is the original, where it
    cannot be found. Raises MeasureError when there is no result.
    """
    at = find_place(folder, baseline, overrides)
    found = [*text_claims(at), *recipe_claims(at, overrides), *file_claims(at)]
    if found[-1].name == LOADS:
        return found
    found += quality_claims(at, overrides)
    return [*found, *time_claims(at, band)] if time else found


def check_table(found: list[Check], title: str) -> Table:
    """Return the claims as a table for the terminal, those that do not hold marked."""
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for name in ("", "claimed", "found", ""):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    marks = {True: "[green]holds[/]", False: "[red]differs[/]", None: "[yellow]not checked[/]"}
    for line in found:
        table.add_row(*map(escape, (line.name, line.claimed, line.found)), marks[line.holds])
    return table


def unchecked(found: list[Check]) -> str:
    """Say how many claims could not be looked at, and why; nothing where all could."""
    reasons: dict[str, int] = {}
    for line in found:
        if line.holds is None:
            why = line.why or line.found
            reasons[why] = reasons.get(why, 0) + 1
    if not reasons:
        return ""
    words = "; ".join(f"{why} ({count})" for why, count in reasons.items())
    return f"{sum(reasons.values())} of {len(found)} claims could not be checked: {words}"
