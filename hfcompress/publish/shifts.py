"""What an average hides, as lines of a card: who won which examples, how far outputs moved, which classes paid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..measure.result import ClassRow, Difference, Result
from .template import code

SHOWN = 3  # classes at either end; up to twice as many are all shown


def shift_lines(result: Result) -> list[str]:
    """Return a line for each statistic that the result holds of its headline difference; older results hold none."""
    head = result.headline()
    return [*_mcnemar(head), *_divergence(head), *_calibration(result, head), *_classes(head)]


def p_value(value: float) -> str:
    """Return a p-value such as ``p = 0.043``, or that it is below what is worth telling apart."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}" if value < 0.1 else f"p = {value:.2f}"


def _mcnemar(head: Difference) -> Iterator[str]:
    if (test := head.mcnemar) is not None:
        yield (
            f"Only the original is right on {test.lost} examples, only the compressed model on {test.gained} "
            f"(exact McNemar test: {p_value(test.p_value)})."
        )


def _divergence(head: Difference) -> Iterator[str]:
    if head.divergence is not None:
        yield f"KL divergence of the predicted classes from the original's: {head.divergence:.3g} nats an example."


def _calibration(result: Result, head: Difference) -> Iterator[str]:
    before, after = (
        found.calibration_error if (found := model.quality_in(head.engine)) else None
        for model in (result.baseline, result.compressed)
    )
    if before is not None and after is not None:
        yield f"Expected calibration error (likeliest class, 15 bins): {before:.1%} before, {after:.1%} after."


def _classes(head: Difference) -> Iterator[str]:
    """Yield the classes by what they lost; of many only those at the ends that changed."""
    ordered = sorted(head.classes, key=lambda row: -row.drop)
    if len(ordered) <= 2 * SHOWN:
        if ordered:
            yield f"Right answers by class: {_listed(ordered)}."
        return
    worse = [row for row in ordered[:SHOWN] if row.drop > 0]
    better = [row for row in ordered[: -SHOWN - 1 : -1] if row.drop < 0]
    if worse:
        lost = sum(row.drop > 0 for row in ordered)
        yield f"Right answers by class, {lost} of {len(ordered)} lost some, most of all: {_listed(worse)}."
    if better:
        yield f"Most gained: {_listed(better)}."


def _listed(found: Sequence[ClassRow]) -> str:
    return "; ".join(f"{code(row.name)} {row.before} → {row.after} of {row.examples}" for row in found)
