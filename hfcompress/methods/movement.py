"""Movement pruning: scores learnt while training decide which heads, units, blocks or single weights go."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..core.config import StrictModel
from ..core.families import Block, Family, blocks_of, head_count, require_removable_heads, unit_count, width_in
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..core.schedule import Schedule
from ..modules.gate import BlockGate, ColumnGate
from ..modules.matrix import matrix
from ..modules.parametrizations import attach, bake, find
from ..modules.shrink import drop_dead_, keep_heads_, keep_units_
from ..modules.sparse import pack_sparse_
from ..modules.ties import refuse_shared
from ..ops.masks import keep_share, keep_top
from ..ops.straight_through import straight_through

Gate = ColumnGate | BlockGate

_PENALTY = 500.0  # of the mean over all scores, one weight behind each; Sanh 2020 ends with 400
_STEPS = 1000  # from here on scores that begin at zero may tell single weights apart
_CLOSE = 0.9  # of the share asked for; below it is told

logger = logging.getLogger(__name__)


class MovementConfig(StrictModel):
    """Settings of movement pruning.

    Hybrid pruning as in Lagunas 2021: `weights` in blocks of 32 x 32 `within: attention`, and `ffn`; `filled: true` for
    the variant in which heads that keep anything come back whole.
    """

    heads: float = Field(0.0, ge=0, lt=1, description="Share of all attention heads to remove.")
    ffn: float = Field(0.0, ge=0, lt=1, description="Share of all feed-forward units to remove.")
    weights: float = Field(0.0, ge=0, lt=1, description="Share to remove of the weights (in blocks) of linear layers.")
    block: tuple[int, int] = Field(
        (1, 1), description="Rows and columns of the blocks that `weights` removes; [1, 1]: single weights."
    )
    within: Literal["all", "attention", "ffn"] = Field("all", description="Which linear layers `weights` acts on.")
    filled: bool = Field(
        False, description="At the end of the schedule, heads that keep any weight get all of theirs back, to train on."
    )
    schedule: Schedule = Field(default_factory=Schedule, description="How the removed share grows over the stage.")
    init: Literal["zeros", "sizes"] = Field(
        "zeros",
        description="What scores begin at. zeros: all the same (Sanh 2020); thousands of steps later they tell what to "
        "spare. sizes: how large a weight is beside the layer's mean, which a few hundred steps correct.",
    )
    score_learning_rate: float = Field(0.01, gt=0, description="Learning rate of the scores (Sanh 2020: 1e-2).")
    scope: Literal["model", "layer"] = Field(
        "model", description="model: all layers compete, each keeps as many as its scores say; layer: the same share."
    )
    round_to: int = Field(8, ge=1, description="Units kept per layer are a multiple of this; kernels like it.")
    selection: Literal["top", "threshold"] = Field(
        "top", description="top: keep the best scores, hard (Sanh 2020); threshold: keep sigmoid(score) above it, soft."
    )
    threshold: float = Field(0.1, gt=0, lt=0.5, description="For `selection: threshold` (Sanh 2020, soft movement).")
    penalty: float | None = Field(
        None,
        ge=0,
        description="For `threshold`: weight of the penalty that pulls to the shares. Default: 500 / sqrt(weights "
        "behind a score), which is 500 for single weights (Sanh 2020: 400) and about 3 for a head of 64 x 768.",
    )
    penalty_norm: Literal["l1", "l0"] = Field(
        "l1", description="l1: on sigmoid(score) (Sanh 2020, section 3); l0: on what is kept, straight through."
    )

    @model_validator(mode="after")
    def _removes_something(self) -> MovementConfig:
        if self.heads == self.ffn == self.weights == 0:
            raise ValueError(
                "set heads, ffn or weights (or several) to the share to remove; with all at 0 nothing would change"
            )
        if min(self.block) < 1:
            raise ValueError("block: rows and columns are at least 1")
        if self.filled and (self.weights == 0 or self.within == "ffn"):
            raise ValueError("filled refills attention heads: it goes with weights, within: attention or all")
        return self


@register
class Movement(Method[MovementConfig]):
    """Learns, while training, which parts the task can spare, and takes them out of the model at the end."""

    info = MethodInfo(
        name="movement",
        title="Movement pruning",
        summary="Scores trained by straight-through gradients decide which heads, FFN units, blocks or weights go.",
        category=Category.PRUNING,
        phase=Phase.STRUCTURE,
        cuts=True,
        papers=("https://arxiv.org/abs/2005.07683", "https://arxiv.org/abs/2109.04838"),
        needs=Needs(training=True),
        examples={
            "heads": {"heads": 0.5},
            "ffn": {"ffn": 0.5},
            "weights": {"weights": 0.5},
            "filled": {"weights": 0.5, "filled": True},
        },
    )
    Config = MovementConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Put an open gate on what may go: columns of output and down projections, blocks of any linear layer."""
        self._family: Family = ctx.family
        self._strength, config = 0.0, self.config
        self._assumed = False
        self._fractions: list[float] = []  # of the first two steps, which tell how many there will be
        blocks = blocks_of(model, ctx.family)
        for path in (path for block in blocks for path in (block.output, block.down)):
            refuse_shared(model, path)
        if config.heads or config.filled:
            require_removable_heads(blocks)
        self._before = _counts(model, blocks)
        heads = [(b.output, b.head_size) for b in blocks] if config.heads else []
        units = [(b.down, 1) for b in blocks] if config.ffn else []
        for path, size in heads + units:
            groups = width_in(model.get_submodule(path)) // size
            self._attach(model, path, ColumnGate(groups, size))
        for path in self._sparse(blocks):
            rows, columns = matrix(model.get_submodule(path)).shape
            self._attach(model, path, BlockGate((rows, columns), *config.block))
        self._groups = self._grouped(model, blocks)
        return [path for path, _ in heads + units] + self._sparse(blocks)

    def assume(self, model: nn.Module) -> None:
        """Take it that training brings soft thresholds to the shares."""
        self._assumed = True

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Close as many gates, lowest scores first, as the schedule wants by now."""
        config = self.config
        self._strength = config.schedule(fraction)
        self._warn_of_few_steps(fraction)
        if self._strength == 0:
            return
        for group in self._groups:
            for gate, mask in zip(group.gates, self._masks(group), strict=True):
                gate.mask.copy_(mask)
        if config.filled and fraction >= config.schedule.end:
            for block in blocks_of(model, self._family):
                _refill(model, block)

    def settled(self, fraction: float) -> bool:
        """Say whether the schedule has reached its end."""
        return fraction >= self.config.schedule.end

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the scores, with their own learning rate and no weight decay."""
        scores = [gate.scores for group in self._groups for gate in group.gates]
        return [{"params": scores, "lr": self.config.score_learning_rate, "weight_decay": 0.0}]

    def extra_loss(self, batch: Mapping[str, Any], student: Any, teacher: Any) -> Tensor | None:
        """Return, for soft thresholds, the penalty on what is kept above the share the schedule wants by now."""
        if self.config.selection == "top":
            return None
        return torch.stack([self._penalty(group) * self._excess(group) for group in self._groups]).sum()

    def finalize(self, model: nn.Module) -> None:
        """Slice closed heads and units out of the layers around them; other zeros leave the file, if that pays."""
        self._warn_of_too_much()
        for block in blocks_of(model, self._family):
            if self.config.heads:
                keep_heads_(model, block, find(model, block.output, ColumnGate).mask)
            if self.config.ffn:
                keep_units_(model, block, find(model, block.down, ColumnGate).mask)
        blocks = blocks_of(model, self._family)
        for path in self._sparse(blocks):
            bake(model, path, BlockGate)
        for block in blocks if self.config.weights else []:
            drop_dead_(model, block)
        self._packed = sum(pack_sparse_(model, path) for path in self._sparse(blocks))

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return heads and units before and after, and after by layer; for `weights` also the layers stored sparse."""
        after = _counts(model, blocks_of(model, self._family))
        numbers: dict[str, float] = {}
        for name in ("heads", "units"):
            numbers[f"{name}_before"] = sum(self._before[name])
            numbers[f"{name}_after"] = sum(after[name])
            numbers |= {f"layer{i}_{name}": count for i, count in enumerate(after[name])}
        return numbers | ({"sparse_layers": self._packed} if self.config.weights else {})

    def _attach(self, model: nn.Module, path: str, gate: Gate) -> None:
        """Put a gate on a layer, its scores begun; soft ones begin above the threshold."""
        config = self.config
        if config.init == "sizes":
            least = math.log(config.threshold / (1 - config.threshold)) if config.selection == "threshold" else 0.0
            gate.begin_(matrix(model.get_submodule(path)), least)
        attach(model, path, gate, as_matrix=True)

    def _sparse(self, blocks: list[Block]) -> list[str]:
        if not self.config.weights:
            return []
        attention = [p for b in blocks for p in (b.query, b.key, b.value, b.output)]
        feed_forward = [p for b in blocks for p in (*b.up, b.down)]
        wanted = {"all": attention + feed_forward, "attention": attention, "ffn": feed_forward}[self.config.within]
        return list(dict.fromkeys(wanted))

    def _grouped(self, model: nn.Module, blocks: list[Block]) -> list[_Group]:
        config = self.config
        wanted = [
            (config.heads, [b.output for b in blocks], ColumnGate),
            (config.ffn, [b.down for b in blocks], ColumnGate),
            (config.weights, self._sparse(blocks), BlockGate),
        ]
        return [_group(model, share, paths, kind) for share, paths, kind in wanted if share]

    @torch.no_grad()
    def _masks(self, group: _Group) -> list[Tensor]:
        config, scores = self.config, [g.scores for g in group.gates]
        if config.selection == "threshold" and not self._assumed:
            return [_above(s, config.threshold) for s in scores]
        density, layer = self._target(group), config.scope == "layer"
        if isinstance(group.gates[0], BlockGate):
            return keep_share(scores, density, per_tensor=layer)
        multiple = config.round_to if group.gates[0].size == 1 else 1
        return keep_top(scores, density, multiple=multiple, per_tensor=layer)

    def _target(self, group: _Group) -> float:
        """Return the share of a group to keep by now."""
        return 1 - self._strength * group.share

    def _penalty(self, group: _Group) -> float:
        """Return the weight of a group's penalty; the default keeps its pull on a score in step with the task's.

        The pull of a mean over N scores falls with 1 / N; that of the task, a sum over G weights which mostly cancel,
        grows with sqrt(G), and N G is what it is.
        """
        return _PENALTY / math.sqrt(group.weights) if self.config.penalty is None else self.config.penalty

    def _excess(self, group: _Group) -> Tensor:
        """Return the mean of the penalty over all scores, once as little as wanted is kept without a gradient."""
        soft = torch.cat([_kept(g, self.config.penalty_norm).flatten() for g in group.gates]).mean()
        return soft * (group.kept > self._target(group))

    def _warn_of_few_steps(self, fraction: float) -> None:
        """Warn, after the second step, where scores that begin at zero will not come to tell single weights apart."""
        passed, self._fractions = self._fractions, [*self._fractions, fraction][:2]
        if self.config.init != "zeros" or not self.config.weights or max(self.config.block) > 1 or len(passed) != 1:
            return
        steps = round(1 / max(fraction - passed[0], 1e-9))
        if steps < _STEPS:
            logger.warning(
                "movement: scores of single weights begin at zero and have %s steps; with fewer than some thousands, "
                "weights go nearly at random. `init: sizes` needs a few hundred.",
                steps,
            )

    def _warn_of_too_much(self) -> None:
        """Warn where soft thresholds have closed less than was asked for."""
        for group in self._groups if self.config.selection == "threshold" else []:
            removed = 1 - float(group.kept)
            if removed < _CLOSE * group.share:
                logger.warning(
                    "movement: soft thresholds removed %.0f%% where %.0f%% was asked for: a higher penalty (it was "
                    "%.3g) or more steps remove more.",
                    *(100 * removed, 100 * group.share, self._penalty(group)),
                )


@dataclass(frozen=True)
class _Group:
    """Gates that compete for one share."""

    share: float  # to remove, in the end
    gates: list[Gate]
    weights: float  # behind a score

    @property
    def kept(self) -> Tensor:
        """The share of open gates."""
        return torch.cat([gate.mask.flatten() for gate in self.gates]).float().mean()


def _group(model: nn.Module, share: float, paths: list[str], kind: type[Gate]) -> _Group:
    gates: list[Gate] = [find(model, path, kind) for path in paths]
    weights = sum(matrix(model.get_submodule(path)).numel() for path in paths)
    return _Group(share, gates, weights / sum(gate.scores.numel() for gate in gates))


def _kept(gate: Gate, norm: str) -> Tensor:
    return torch.sigmoid(gate.scores) if norm == "l1" else straight_through(gate.mask, gate.scores)


def _above(scores: Tensor, threshold: float) -> Tensor:
    """Return sigmoid(score) > threshold, and at least the best one: an empty layer could not be built."""
    mask = torch.sigmoid(scores) > threshold
    mask.view(-1)[scores.argmax()] = True
    return mask


@torch.no_grad()
def _refill(model: nn.Module, block: Block) -> None:
    """Open every block of the heads that keep any column of the output projection, and close the other heads."""
    gate = find(model, block.output, BlockGate)
    columns = width_in(model.get_submodule(block.output))
    alive = gate.mask.any(0).repeat_interleave(gate.columns)[:columns].view(-1, block.head_size).any(1)
    queries, keys = alive.repeat_interleave(block.head_size), alive.repeat_interleave(block.key_size)
    inputs = [(block.query, keys.repeat(3))] if block.fused else [(block.query, queries)]
    inputs += [] if block.fused else [(block.key, keys), (block.value, keys)]
    for path, weights in inputs:
        gate = find(model, path, BlockGate)
        gate.mask.copy_(_blocks(weights, gate.rows)[:, None].expand_as(gate.mask))
    gate = find(model, block.output, BlockGate)
    gate.mask.copy_(_blocks(queries, gate.columns).expand_as(gate.mask))


def _blocks(lines: Tensor, size: int) -> Tensor:
    """Return which blocks of `size` rows or columns hold any of the `lines`."""
    return torch.stack([part.any() for part in lines.split(size)])


def _counts(model: nn.Module, blocks: list[Block]) -> dict[str, list[int]]:
    """Return heads and feed-forward units per layer, read off the shapes."""
    return {"heads": [head_count(model, b) for b in blocks], "units": [unit_count(model, b) for b in blocks]}
