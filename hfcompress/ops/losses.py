"""Distillation losses; each returns a scalar mean over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error of hidden states over real tokens (TinyBERT, Jiao 2020, eq. 8, equal widths).

    student, teacher: (batch, length, width); mask: (batch, length), 1 for real tokens, None when all are.
    """
    error = (student.float() - teacher.float()).pow(2).mean(-1)
    if mask is None:
        return error.mean()
    mask = mask.to(error.dtype)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return `hard` in the forward pass while the gradient flows to `soft` unchanged (Bengio 2013)."""
    return _StraightThrough.apply(hard, soft)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.to(soft.dtype)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]
