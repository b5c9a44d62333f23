"""LoRA: small trained products beside frozen weights, by peft; merged at the end, or kept where weights are codes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pydantic import ConfigDict, Field, model_validator
from torch import nn

from ..core.errors import TargetError, nearest
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..core.sparsity import Targets
from ..core.targets import matches, select
from ..modules.adapters import (
    MERGE_ONLY,
    adapter_parameters,
    add_adapters_,
    keeps_codes,
    settle_adapters_,
    start_from_rounding_,
)
from ..modules.chains import LINEAR, target_layers
from ..modules.companion import companion_parameters
from ..modules.packable import refuse_obstacles, unseen
from ..modules.ties import sharers

_OURS = ("keep", "learning_rate", "loftq_iterations", "targets", "ignore", "modules_to_save")
_INSTEAD = {
    "target_modules": "use `targets`",
    "exclude_modules": "use `ignore`",
    "inference_mode": "the stage trains",
    "loftq_config": "use `loftq_iterations`; it rounds to NF4",
    **dict.fromkeys(("layers_to_transform", "layers_pattern"), "use `targets`"),
    **dict.fromkeys(
        ("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        "it describes an adapter folder, and there is none: adapters are merged or part of the model",
    ),
    **dict.fromkeys(
        ("layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens"),
        "it can't be merged into the layers it adapts",
    ),
    **dict.fromkeys(("arrow_config", "use_bdlora", "velora_config", "monteclora_config"), "it can't be merged"),
    **dict.fromkeys(("eva_config", "corda_config", "lora_ga_config"), "it starts from a pass over data"),
    **dict.fromkeys(("megatron_config", "megatron_core", "runtime_config"), "it is for another kind of training"),
}
_FROM_DATA = ("eva", "corda", "lora_ga")


def _fields_of_peft() -> set[str]:
    """Return the fields of peft's LoraConfig that have a meaning here, importing it only now."""
    import peft

    return {field.name for field in fields(peft.LoraConfig)} - set(_INSTEAD)


def _add_fields_of_peft(schema: dict[str, Any]) -> None:
    for name in sorted(_fields_of_peft()):
        schema["properties"].setdefault(name, {"description": "As in peft.LoraConfig."})
    schema["additionalProperties"] = False


class LoRAConfig(Targets):
    """Settings of LoRA; beside these, any other field of `peft.LoraConfig` that can be merged."""

    # what peft knows beyond these is checked against its own class
    model_config = ConfigDict(extra="allow", json_schema_extra=lambda schema: _add_fields_of_peft(schema))

    r: int = Field(8, ge=1, description="Rank of the adapters.")
    lora_alpha: float = Field(16, gt=0, description="The product is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on what an adapter reads.")
    use_dora: bool = Field(False, description="DoRA: learn the size of every row apart from its direction.")
    init_lora_weights: bool | str = Field(
        True,
        description="How adapters start. true: as the zero matrix; pissa: with the largest singular vectors, taken out "
        "of the weight; loftq: with what rounding the weight would lose; gaussian, olora, orthogonal.",
    )
    modules_to_save: list[str] | None = Field(
        None, description="Other modules that train too: paths, re:<regex>, or class names, such as classifier."
    )
    loftq_iterations: int = Field(1, ge=1, description="For loftq: how often rounding and adapter are fitted in turn.")
    keep: bool = Field(
        False,
        description="Keep adapters in the model beside their layers, whatever these are. false: only beside layers "
        "that hold codes, or no zeros, where merging would undo what compressed them; others take them in.",
    )
    learning_rate: float | None = Field(None, gt=0, description="Of the adapters; default: the stage's own.")

    @model_validator(mode="after")
    def _known_to_peft(self) -> LoRAConfig:
        extra = self.model_extra or {}
        if extra:
            known = _fields_of_peft()
            for name in extra:
                if name in _INSTEAD:
                    raise ValueError(f"{name} has no meaning here: {_INSTEAD[name]}")
                if name not in known:
                    raise ValueError(f"unknown key {name!r}.{nearest(name, {*known, *_OURS})}")
        if any(str(self.init_lora_weights).startswith(name) for name in _FROM_DATA):
            raise ValueError(
                f"init_lora_weights: {self.init_lora_weights} starts from a pass over data, which the stage does not "
                "make; use pissa, loftq, olora or true"
            )
        if self.keep and (asked := self.merge_only()):
            raise ValueError(f"{asked} can only be merged: leave out `keep`")
        return self

    def merge_only(self) -> str | None:
        """Return the name of a setting whose adapter is no product of two matrices, and so can't be kept, or None."""
        return next((name for name in MERGE_ONLY if getattr(self, name, None)), None)

    def peft_fields(self) -> dict[str, Any]:
        """Return what goes to peft's LoraConfig."""
        found = {k: v for k, v in self.model_dump().items() if k not in _OURS}
        # peft's own LoftQ computes on a GPU only; ours follows once the adapters are there
        return found | {"init_lora_weights": True} if self.init_lora_weights == "loftq" else found


@register
class LoRA(Method[LoRAConfig]):
    """Trains adapters while the model they are on stays frozen, and so may be quantized (QLoRA).

    An adapter beside codes stays in the checkpoint as a module of its own, two linear layers beside the one adapted, so
    that `from_pretrained` gives the whole model. LoftQ: `init_lora_weights: loftq` with `keep: true`, then a stage that
    quantizes the layers they are beside.
    """

    info = MethodInfo(
        name="lora",
        title="LoRA",
        summary="Low-rank adapters train while the rest is frozen; merged at the end, or kept beside packed weights.",
        category=Category.LOW_RANK,
        phase=Phase.FACTOR,
        papers=(
            "https://arxiv.org/abs/2106.09685",
            "https://arxiv.org/abs/2305.14314",
            "https://arxiv.org/abs/2402.09353",
            "https://arxiv.org/abs/2404.02948",
            "https://arxiv.org/abs/2310.08659",
        ),
        needs=Needs(training=True),
        alone=True,
        adapts=True,
    )
    Config = LoRAConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Put the adapters on and freeze the rest of the model; what trains beside it goes on training.

        Raises TargetError for a layer that takes no adapter, and for settings that need weights where there are codes.
        """
        paths = self._select(model)
        self._thawed = [p for p in model.parameters() if p.requires_grad]
        others = self._others(model)
        add_adapters_(model, paths, self.config.peft_fields(), ctx.seed)
        if self.config.init_lora_weights == "loftq":
            start_from_rounding_(model, self.config.loftq_iterations)
        for module in others:
            for parameter in module.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
        self._trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        beside = {id(p) for p in companion_parameters(model)}
        for parameter in self._thawed:  # peft froze it with the model
            if id(parameter) in beside:
                parameter.requires_grad_(True)
        return paths

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the adapters, where they have a learning rate of their own."""
        if self.config.learning_rate is None:
            return []
        return [{"params": adapter_parameters(model), "lr": self.config.learning_rate}]

    def finalize(self, model: nn.Module) -> None:
        """Merge or keep the adapters, and let what trained before train again."""
        self._merged, self._kept = settle_adapters_(model, self.config.keep)
        for parameter in self._thawed:
            parameter.requires_grad_(True)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the adapters merged and kept, and the numbers that trained."""
        return {"merged": self._merged, "kept": self._kept, "trained_parameters": self._trained}

    def _select(self, model: nn.Module) -> list[str]:
        config, name = self.config, self.info.name
        kinds = (*LINEAR, nn.Embedding, nn.Conv2d)
        layers = target_layers(model, config.targets, kinds, name, why_not=unseen)
        wanted = select(layers, config.targets, config.ignore, f"{name}.targets")
        refuse_obstacles(model, wanted, unseen)
        chosen: list[str] = []
        seen: set[int] = set()
        for path, module in wanted:
            if id(module) not in seen:
                group = sharers(model, path)
                seen |= {id(tied) for _, tied in group}
                self._refuse(path, module, shared=len({id(tied) for _, tied in group}) > 1)
                chosen.append(path)
        return chosen

    def _refuse(self, path: str, module: nn.Module, *, shared: bool) -> None:
        """Raise TargetError for settings that this layer can't serve."""
        config = self.config
        stays = config.keep or keeps_codes(module)
        if stays and shared:
            raise TargetError(
                f"lora: {path}: its weight is shared, and an adapter kept beside it would not be; ignore it"
            )
        if stays and isinstance(module, nn.Embedding | nn.Conv2d):
            raise TargetError(
                f"lora: {path}: an adapter beside a {type(module).__name__} can only be merged; ignore it"
            )
        asked = config.merge_only()
        if keeps_codes(module) and (asked or config.init_lora_weights not in (True, False, "gaussian")):
            what = asked or f"init_lora_weights: {config.init_lora_weights}"
            raise TargetError(
                f"lora: {path}: {what} needs float weights, and this layer holds codes; "
                + (
                    "leave it out, or add adapters before quantizing"
                    if asked
                    else "use init_lora_weights: true or gaussian, or add adapters before quantizing, with `keep: true`"
                )
            )

    def _others(self, model: nn.Module) -> list[nn.Module]:
        wanted = self.config.modules_to_save or []
        found = list(model.named_modules())
        select(found, wanted, (), f"{self.info.name}.modules_to_save")
        return [m for path, m in found if any(matches(pattern, path, m) for pattern in wanted)]
