"""What a stage's methods leave of the weights: in their reports, and as a warning where they could not do otherwise."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import nn

from ..core.method import Method
from ..modules.coverage import KEY, Weights, acts_on_weights, left_alone

logger = logging.getLogger(__name__)

Report = dict[str, dict[str, float]]


def coverage(
    model: nn.Module, methods: Sequence[Method], weights: Weights, targets: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return, by method, the share of `weights` it does not act on; a warning names what it can't act on.

    Only methods that act on weights layer by layer are among them. What a user's own targets leave is not warned of.
    """
    shares = {}
    for method in methods:
        if not acts_on_weights(method):
            continue
        left = left_alone(model, weights, targets[method.info.name], method.left_out)
        shares[method.info.name] = round(left.share, 4)
        if str(left) and getattr(method.config, "targets", None) is None:
            logger.warning("%s: %s", method.info.name, left)
    return shares


def with_coverage(report: Report, shares: Mapping[str, float]) -> Report:
    """Return what methods report, with the share of the weights that each leaves as it is."""
    return {name: numbers | ({KEY: shares[name]} if name in shares else {}) for name, numbers in report.items()}
