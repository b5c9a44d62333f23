"""Names beside the points of a figure: on no other point, on no other name, and off the lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text

from .canvas import INK

Array = np.ndarray  # of boxes: (…, 4), left, bottom, right, top in pixels

_RINGS = (7.0, 12.0, 18.0, 26.0, 36.0, 48.0, 62.0, 80.0, 100.0, 125.0, 155.0)  # points from a dot to its name
_ANGLES = 24
_ROUNDS = 8
_OVER, _CROSSED, _LEADER, _OUT = 1000.0, 400.0, 60.0, 5000.0  # what each fault costs, in points of distance
_ROOM = 1.5  # points between a name and whatever is near


@dataclass(frozen=True)
class Label:
    """A name and where its point lies, in the data's units."""

    text: str
    x: float
    y: float
    colour: str


def write_labels(
    axis: Axes,
    labels: Sequence[Label],
    line: Sequence[tuple[float, float]] = (),
    *,
    size: float,
    radius: float,
    nameless: Sequence[tuple[float, float]] = (),
) -> None:
    """Write every name where it covers no point, no other name and no part of `line`, a path of points.

    `nameless` are further points to keep clear of. The figure must have been laid out. `size` is the font's, `radius` a
    point's, both in points; a name that cannot stand beside its point is joined to it by a thin line. What is crowded
    most chooses first, and all choose again until none would move.
    """
    unit, page = axis.figure.dpi / 72, np.array(axis.bbox.extents)
    path = [axis.transData.transform(point) for point in line]
    around = unit * _ROOM * np.array([-1, -1, 1, 1])
    edges = np.array([[*np.minimum(a, b), *np.maximum(a, b)] for a, b in pairwise(path)]).reshape(-1, 4) + around
    texts = [_text(axis, label, size) for label in labels]
    dots = np.array([axis.transData.transform((label.x, label.y)) for label in labels])
    points = np.array([*dots, *(axis.transData.transform(point) for point in nameless)]).reshape(-1, 2)
    marks = np.hstack([points, points]) + unit * (radius + _ROOM) * np.array([-1, -1, 1, 1])
    spots = [_spots(dot, text, unit) for dot, text in zip(dots, texts, strict=True)]
    boxes = np.full((len(labels), 4), np.inf)  # not yet anywhere
    for _ in range(_ROUNDS):
        before = boxes.copy()
        for i in np.argsort(_room(dots)):
            others = np.delete(boxes, i, axis=0)
            cost = spots[i][0] + _OUT * _outside(spots[i][1], page) + _CROSSED * _overlaps(spots[i][1], edges)
            cost += _OVER * (_overlaps(spots[i][1], marks) + _overlaps(spots[i][1], others))
            cost += _LEADER * _crossings(dots[i], spots[i][1], np.vstack([np.delete(marks, i, axis=0), others]))
            boxes[i] = spots[i][1][int(cost.argmin())]
        if np.array_equal(before, boxes):
            break
    for text, dot, box in zip(texts, dots, boxes, strict=True):
        _write(axis, text, dot, box, unit)


def _text(axis: Axes, label: Label, size: float) -> Text:
    text = axis.text(label.x, label.y, label.text, fontsize=size, color=label.colour)
    text.set_in_layout(False)
    return text


def _spots(dot: Array, text: Text, unit: float) -> tuple[Array, Array]:
    """Return places for a name with the distance of each, (K,) and (K, 4); to the right comes first among equals."""
    extent = text.get_window_extent()
    ring, angle = (a.ravel() for a in np.meshgrid(_RINGS, 2 * np.pi * np.arange(_ANGLES) / _ANGLES, indexing="ij"))
    dx, dy = np.cos(angle), np.sin(angle)
    left = dot[0] + ring * unit * dx - extent.width * (1 - dx) / 2
    bottom = dot[1] + ring * unit * dy - extent.height * (1 - dy) / 2
    return ring + (1 - dx), np.stack([left, bottom, left + extent.width, bottom + extent.height], axis=1)


def _overlaps(boxes: Array, others: Array) -> Array:
    """Return how many of `others` each box overlaps."""
    a, b = boxes[:, None], others[None]
    return ((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:])).all(-1).sum(-1)


def _outside(boxes: Array, page: Array) -> Array:
    return np.any((boxes[:, :2] < page[:2]) | (boxes[:, 2:] > page[2:]), axis=-1)


def _crossings(dot: Array, boxes: Array, others: Array) -> Array:
    """Return through how many of `others` the straight line from a dot to each box passes (Liang and Barsky 1984)."""
    step = (_nearest(dot, boxes) - dot)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.stack([(others[None, :, :2] - dot) / step, (others[None, :, 2:] - dot) / step])
    low, high = at.min(0).max(-1), at.max(0).min(-1)  # nan, which no comparison holds for: a line along an edge
    return ((low <= high) & (low <= 1) & (high >= 0)).sum(-1)


def _nearest(dot: Array, boxes: Array) -> Array:
    """Return the point of each box that is nearest to the dot."""
    return np.clip(dot, boxes[..., :2], boxes[..., 2:])


def _room(dots: Array) -> Array:
    """Return how far the four nearest other dots are."""
    return np.sort(np.linalg.norm(dots[:, None] - dots[None], axis=-1))[:, 1:5].sum(-1)


def _write(axis: Axes, text: Text, dot: Array, box: Array, unit: float) -> None:
    back = axis.transData.inverted().transform
    for _ in range(2):  # the second time for what the baseline adds
        shift = np.array(text.get_window_extent().extents[:2]) - axis.transData.transform(text.get_position())
        text.set_position(tuple(back(box[:2] - shift)))
    end = _nearest(dot, box)
    if np.linalg.norm(end - dot) > _RINGS[2] * unit:
        x, y = back([dot, end]).T
        axis.plot(x, y, color=INK, linewidth=0.5, zorder=1, scalex=False, scaley=False)
