"""Channel pruning: whole channels of convolutions go, through every layer that writes or reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..core.config import StrictModel
from ..core.errors import FamilyError, TargetError
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.position_tables import usual_image_size
from ..core.registry import register
from ..core.targets import select
from ..modules.batch_norm import recalibrate_
from ..modules.channel_choice import (
    batch_norms,
    choose_channels,
    filter_norms,
    norm_scales,
    ramps,
    refit_readers_,
    silence_,
    taylor_scores,
)
from ..modules.channels import ChannelGroup, channels_of, keep_channels_of_


class ChannelsConfig(StrictModel):
    """Settings of channel pruning; train after it."""

    remove: float = Field(gt=0, lt=1, description="Share to remove of what `budget` counts.")
    budget: Literal["channels", "parameters", "flops"] = Field(
        "flops",
        description="What `remove` is a share of: the channels that may go, or the weights or multiplications of all "
        "convolutions and linear layers of the network.",
    )
    scope: Literal["model", "layer"] = Field(
        "model", description="model: all channels compete; layer: the same share of each layer's."
    )
    importance: Literal["taylor", "l1", "slimming"] = Field(
        "taylor",
        description="What a channel is worth. taylor: the squared first-order change of the loss, from gradients on "
        "calibration data (Molchanov 2019); l1: the norm of its filters (Li 2017); slimming: |gamma| of its BatchNorm "
        "(Liu 2017).",
    )
    residual: bool = Field(
        False,
        description="Whether channels may go that residual connections add up over several layers; they cost more.",
    )
    penalty: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="For slimming, in a stage that trains: weight of the sum of |gamma| of the BatchNorms in the loss, "
        "such as 1e-4; channels go when the stage ends (Liu 2017).",
    )
    refit: bool | None = Field(
        None,
        description="Fit the layers that read removed channels to give what they gave, by least squares on calibration "
        "data (ThiNet, Luo 2017); default: unless there is a `penalty`, whose stage trains and calibrates nothing.",
    )
    ridge: float = Field(
        0.01, gt=0, description="For refit: pull towards the original weights, relative to the inputs' mean square."
    )
    recalibrate: bool | None = Field(
        None,
        description="Measure the statistics of BatchNorm on calibration data anew (EagleEye, Li 2020); default: as for "
        "refit.",
    )
    round_to: int = Field(8, ge=1, description="Channels kept are a multiple of this; kernels like it.")
    least: float = Field(0.1, ge=0, lt=1, description="Share of each layer's channels that stays in any case.")
    examples: int = Field(512, ge=1, description="Calibration examples to read, where the caller provides that many.")
    targets: list[str] | None = Field(
        None,
        description="Layers whose output channels may go: module paths, re:<regex>, or class names; default: all that "
        "`residual` allows.",
    )
    ignore: list[str] = Field(default_factory=list, description="Layers to leave alone, in the same notation.")

    @model_validator(mode="after")
    def _one_way(self) -> ChannelsConfig:
        if self.penalty and self.importance != "slimming":
            raise ValueError("a penalty shrinks the scales that `importance: slimming` goes by; set that")
        if self.penalty and (self.refit or self.recalibrate):
            raise ValueError("refit and recalibrate read calibration data, which a stage with a penalty does not")
        return self


@register
class Channels(Method[ChannelsConfig]):
    """Removes the channels of convolutional networks that are worth the least, in one step."""

    info = MethodInfo(
        name="channels",
        title="Channel pruning",
        summary="Channels of convolutions leave with all that reads them, by Taylor, L1 or BatchNorm scale, which "
        "training may shrink (network slimming).",
        category=Category.PRUNING,
        phase=Phase.STRUCTURE,
        cuts=True,
        papers=(
            "https://arxiv.org/abs/1608.08710",
            "https://arxiv.org/abs/1906.10771",
            "https://arxiv.org/abs/1708.06519",
            "https://arxiv.org/abs/1707.06342",
            "https://arxiv.org/abs/2301.12900",
        ),
        needs=Needs(calibration=True),
        alone=True,  # the sizes of many layers change
        examples={"": {"remove": 0.3, "round_to": 2}},
    )
    Config = ChannelsConfig

    @property
    def needs(self) -> Needs:
        """Training where it penalizes scales, otherwise calibration data."""
        return Needs(training=True) if self.config.penalty else self.info.needs

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Find the channels that may go; TargetError where there are none, or too few for what is to go."""
        _refuse_others(model, ctx)
        self._seed = ctx.seed
        self._channels = channels_of(model, ctx.corpus.image_size() or usual_image_size(model.config))
        self._chosen = self._select(model)
        self._whole = [group.width for group in self._channels.groups]
        self._masks = self._choose(ramps(self._chosen))
        self._done = False
        self._norms = batch_norms(model, self._chosen) if self.config.penalty else []
        self._sum: tuple[Any, int] = (0.0, 0)
        return list(dict.fromkeys(path for group in self._chosen for path in group.layers))

    def settled(self, fraction: float) -> bool:
        """Say whether the channels are gone, which with a penalty they are at the end."""
        return not self.config.penalty or fraction >= 1

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """With a penalty, at the end: choose the channels by their scales and silence them, as if they were gone."""
        if not self.config.penalty or fraction < 1 or self._done:
            return
        self._masks = self._choose(norm_scales(model, self._chosen))
        for group, keep in zip(self._chosen, self._masks, strict=True):
            silence_(batch_norms(model, [group]), keep)

    def extra_loss(self, batch: Mapping[str, Any], student: Any, teacher: Any) -> Tensor | None:
        """Return the penalty times the sum of |gamma| over the channels that may go (Liu 2017, equation 1)."""
        if not self.config.penalty:
            return None
        scales = torch.cat([norm.weight.abs().float() for norm in self._norms])
        total, count = self._sum
        self._sum = total + scales.detach().mean(), count + 1
        return self.config.penalty * scales.sum()

    def log(self) -> dict[str, float]:
        """Return the mean of |gamma| since the last call."""
        (total, count), self._sum = self._sum, (0.0, 0)
        return {"scale": float(total) / count} if count else {}

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Choose the channels, refit what reads them, and take them out, in place."""
        batches, config = list(batches), self.config
        scores = self._scores(model, batches)
        self._masks = self._choose(scores)
        kept = [pair for pair in zip(self._chosen, self._masks, strict=True) if not pair[1].all()]
        if config.refit is not False:
            refit_readers_(model, kept, batches, config.ridge)
        self._cut_(model)
        if config.recalibrate is not False:
            recalibrate_(model, batches)

    def finalize(self, model: nn.Module) -> None:
        """Without calibration, as in a plan, as many channels go as if all layers were worth the same."""
        if not self._done:
            self._cut_(model)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return weights and multiplications (per image) of convolutions and linear layers before and after."""
        left = {id(group): int(keep.sum()) for group, keep in zip(self._chosen, self._masks, strict=True)}
        after = [left.get(id(group), group.width) for group in self._channels.groups]
        numbers = {}
        for unit, name in (("parameters", "weights"), ("flops", "multiplications")):
            for when, counts in (("before", self._whole), ("after", after)):
                numbers[f"{name}_{when}"] = float(self._channels.cost(counts, unit))
        return numbers

    def _cut_(self, model: nn.Module) -> None:
        for group, keep in zip(self._chosen, self._masks, strict=True):
            if not keep.all():
                keep_channels_of_(model, group, keep)
        self._done = True

    def _scores(self, model: nn.Module, batches: list[Mapping[str, Tensor]]) -> list[Tensor]:
        if self.config.importance == "taylor":
            return taylor_scores(model, self._chosen, batches, self._seed)
        return {"l1": filter_norms, "slimming": norm_scales}[self.config.importance](model, self._chosen)

    def _choose(self, scores: list[Tensor]) -> list[Tensor]:
        config = self.config
        names = ("remove", "budget", "scope", "least")
        settings = {name: getattr(config, name) for name in names}
        chosen, multiple = self._chosen, config.round_to
        return choose_channels(self._channels, chosen, scores, **settings, multiple=multiple, where="channels.remove")

    def _select(self, model: nn.Module) -> list[ChannelGroup]:
        groups = [g for g in self._channels.groups if self.config.residual or not g.residual]
        if not groups:
            raise TargetError(f"channels: a {type(model).__name__} has no convolution whose channels could go")
        layers = [(path, model.get_submodule(path)) for group in groups for path in group.writers]
        wanted = {p for p, _ in select(layers, self.config.targets, self.config.ignore, "channels.targets")}
        found = [group for group in groups if wanted >= set(group.writers)]
        if not found:
            raise TargetError(
                "channels.targets: of channels that several layers write, name all of them: "
                f"{', '.join(groups[0].writers)}"
            )
        if self.config.importance == "slimming" and not any(p.is_meta for p in model.parameters()):
            norm_scales(model, found)
        return found


def _refuse_others(model: nn.Module, ctx: Context) -> None:
    """Raise TargetError for what is no convolutional network; one of an unknown model type is worth a try."""
    if not any(hasattr(module, "kernel_size") for module in model.modules()):
        raise TargetError(f"channels: a {type(model).__name__} has no convolution (nn.Conv2d)")
    try:
        family = ctx.family
    except FamilyError:
        return
    if family.attention is not None:
        raise TargetError(
            f"channels: a {type(model).__name__} is a transformer: prune its heads, its feed-forward units or its width"
        )
