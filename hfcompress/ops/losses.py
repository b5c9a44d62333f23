"""Distillation losses; each returns a scalar mean over the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.layer_map import Pairs

Answers = Literal["classes", "labels", "numbers"]  # of which one is right, or any of them, or that are the answer


def answers(problem_type: str | None, count: int) -> Answers:
    """Say what `count` logits are, by a config's `problem_type`; one alone is a number, for softmax makes 1 of any."""
    if problem_type == "multi_label_classification":
        return "labels"
    return "numbers" if problem_type == "regression" or count == 1 else "classes"


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Return T^2 * KL(teacher || student) of softened logits (Hinton 2015, section 2).

    student, teacher: (batch, …, classes) logits; mask: (batch, …), True where a row counts, None when all do. The mean
    is over the rows that count, and zero when none does. The factor T^2 keeps the gradient's size independent of T.
    """
    if mask is None:
        student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    else:
        student, teacher = student[mask], teacher[mask]
    log_p = F.log_softmax(student.float() / temperature, dim=-1)
    log_q = F.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    return divergence / max(1, len(student)) * temperature**2


def divergence(
    kind: Answers, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Return how far the student's logits are from the teacher's: squared error of numbers, which have no temperature.

    Shapes as in `soft_cross_entropy`.
    """
    if kind == "numbers":
        return logits_mse(student, teacher, mask)
    loss = soft_cross_entropy if kind == "classes" else soft_binary_cross_entropy
    return loss(student, teacher, temperature, mask)


def soft_binary_cross_entropy(
    student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Return T^2 * KL(teacher || student) of softened logits of labels that are there or not, a mean over labels.

    Shapes as in `soft_cross_entropy`.
    """
    s, t = student.float() / temperature, teacher.float() / temperature
    there = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    absent = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return _mean((there + absent).mean(-1), mask) * temperature**2


def soft_label_cross_entropy(student: Tensor, shares: Tensor) -> Tensor:
    """Return the cross-entropy against labels mixed from several, weighted by how much of a label a row has.

    student: (batch, classes) logits; shares: (batch, classes) of each label, rows of zeros where there is none.
    """
    return -(shares * F.log_softmax(student.float(), dim=-1)).sum() / shares.sum().clamp(min=1)


def logits_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the squared error of logits, a mean over classes and the rows that count (Ba & Caruana 2014, eq. 1).

    Shapes as in `soft_cross_entropy`.
    """
    return _mean((student.float() - teacher.float()).square().mean(-1), mask)


def hard_cross_entropy(student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, binary: bool = False) -> Tensor:
    """Return the cross-entropy against the teacher's own decisions (DeiT, Touvron 2021, eq. 3).

    Shapes as in `soft_cross_entropy`. binary: each class is decided on by itself, and the mean is over classes too.
    """
    if binary:
        decided = (teacher > 0).float()
        return _mean(F.binary_cross_entropy_with_logits(student.float(), decided, reduction="none").mean(-1), mask)
    losses = F.cross_entropy(student.float().movedim(-1, 1), teacher.argmax(-1), reduction="none")
    return _mean(losses, mask)


def hidden_cosine(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return 1 - cosine of hidden states, a mean over real tokens (DistilBERT, Sanh 2019).

    Shapes as in `hidden_mse`.
    """
    return _mean(1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1), mask)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error of hidden states over real tokens (TinyBERT, Jiao 2020, eq. 8).

    student, teacher: (batch, length, width); mask: (batch, length), 1 for real tokens, None when all are.
    """
    return _mean((student.float() - teacher.float()).pow(2).mean(-1), mask)


@torch.no_grad()
def nearest_pairs(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None = None) -> Pairs:
    """Return (s, t) for every layer s of the student, t the teacher's of the smallest `hidden_mse` (CoFi, Xia 2022)."""
    errors = torch.stack([torch.stack([hidden_mse(s, t, mask) for t in teacher]) for s in student])
    return list(enumerate(errors.argmin(1).tolist()))


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over everything, or over where the mask is 1; zero where it nowhere is."""
    if mask is None:
        return values.mean()
    mask = mask.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=1)
