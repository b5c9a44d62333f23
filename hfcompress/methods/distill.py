"""Knowledge distillation from a frozen teacher: logits, decisions, hidden states, attention and relations of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..core.config import EITHER, MAPPING, PLAIN, StrictModel
from ..core.errors import LifecycleError
from ..core.layer_map import layer_pairs, student_layers
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..core.schedule import Weighted
from ..core.teaching import AttentionPart, CosinePart, HiddenPart, LogitsPart, MapsPart, RelationsPart
from ..modules.capture import KEY, QUERY, VALUE, AttentionMaps, Capture
from ..modules.companion import ProjectedStates, attach_companion_, detach_companion_
from ..modules.pairing import (
    attentions_of,
    relation_heads,
    require_same,
    require_same_heads,
    require_same_labels,
)
from ..modules.probing import require_comparable, require_configs
from ..modules.seen import Seen, mean_over, require_same_tokens
from ..modules.state_pairs import projections_to, state_pairs
from ..ops.losses import Answers, answers, divergence, hard_cross_entropy, hidden_cosine, hidden_mse, nearest_pairs
from ..ops.relations import activation_map_mse, attention_kl, attention_mse, attention_scores_mse, relation_kl

NAME = "distill"
_ENDS = {"query": (QUERY, QUERY), "key": (KEY, KEY), "value": (VALUE, VALUE), "query_key": (QUERY, KEY)}
_ATTENTION_LOSSES = {"mse": attention_mse, "scores": attention_scores_mse, "kl": attention_kl}


_Number = Annotated[float, Field(ge=0), PLAIN]


class DistillConfig(StrictModel):
    """Settings of distillation: the loss is the sum of its parts, each a weight or, to say more, a mapping.

    MiniLMv2: `{logits: 0, task: 0, relations: {heads: 12, layers: last}}`. TinyBERT: `{logits: 0, task: 0, hidden: 1,
    attention: {loss: scores}}`, then the default. DistilBERT: `{logits: 0.5, cosine: 0.1}`. DeiT: `{logits: 0,
    hard: 0.5, task: 0.5}`; where a distillation token has a head of its own, that one learns from the teacher alone.
    """

    temperature: float = Field(2.0, gt=0, description="Softening of both models' logits (Hinton 2015).")
    logits: Annotated[_Number | Annotated[LogitsPart, MAPPING], EITHER] = Field(
        0.9,
        description="Weight of the loss against the teacher's logits; of each label by itself where several may be "
        "right, a squared error where they are numbers (regression).",
    )
    hard: Annotated[_Number | Annotated[Weighted, MAPPING], EITHER] = Field(
        0.0, description="Weight of the cross-entropy against the teacher's decisions (DeiT)."
    )
    hidden: Annotated[_Number | Annotated[HiddenPart, MAPPING], EITHER] = Field(
        0.0, description="Weight of the mean squared error of hidden states (TinyBERT)."
    )
    cosine: Annotated[_Number | Annotated[CosinePart, MAPPING], EITHER] = Field(
        0.0, description="Weight of 1 - cosine of hidden states (DistilBERT)."
    )
    maps: Annotated[_Number | Annotated[MapsPart, MAPPING], EITHER] = Field(
        0.0,
        description="Weight of the distance of activation maps (attention transfer, Zagoruyko 2017); says little where "
        "a norm ends every layer, as in BERT: all tokens then have the same strength.",
    )
    attention: Annotated[_Number | Annotated[AttentionPart, MAPPING], EITHER] = Field(
        0.0, description="Weight of the loss on attention (TinyBERT, MiniLM)."
    )
    relations: Annotated[_Number | Annotated[RelationsPart, MAPPING], EITHER] = Field(
        0.0, description="Weight of the loss on relations of queries, keys and values (MiniLMv2)."
    )
    projection: Literal["shared", "each"] = Field(
        "shared",
        description="Where hidden widths differ: one projection for all layers, or one for each of the student.",
    )
    task: Annotated[_Number | Annotated[Weighted, MAPPING], EITHER] | None = Field(
        None, description="Weight of the loss against the labels; default 1 - logits."
    )

    @model_validator(mode="after")
    def _teaches_something(self) -> DistillConfig:
        if not self.parts():
            raise ValueError(
                f"set one of {', '.join(_PARTS)}, or several, above 0; with all at 0 the teacher would not be heard"
            )
        return self

    def parts(self) -> dict[str, Weighted]:
        """Return the parts that teach at any time, as mappings."""
        parts = {name: _mapping(getattr(self, name), kind) for name, kind in _PARTS.items()}
        return {name: part for name, part in parts.items() if part.ever}


@register
class Distill(Method[DistillConfig]):
    """Trains the student towards what the teacher gives and how it gets there; leaves nothing behind in the model."""

    info = MethodInfo(
        name=NAME,
        title="Knowledge distillation",
        summary="The frozen teacher's logits, decisions, hidden states, attention or token relations join the loss.",
        category=Category.DISTILLATION,
        phase=Phase.COMPANION,
        papers=(
            "https://arxiv.org/abs/1503.02531",
            "https://arxiv.org/abs/1909.10351",
            "https://arxiv.org/abs/2012.15828",
            "https://arxiv.org/abs/1612.03928",
            "https://arxiv.org/abs/2012.12877",
            "https://arxiv.org/abs/2204.00408",
        ),
        needs=Needs(training=True, teacher=True),
        examples={
            "logits": {},
            "hidden": {"hidden": 1.0},
            "attention": {"attention": 1.0},
            "relations": {"relations": 1.0},
        },
    )
    Config = DistillConfig

    def __init__(self, config: DistillConfig) -> None:
        self.config = config
        self._fraction, self._parts = 0.0, config.parts()
        self._sums: dict[str, tuple[Any, int]] = {}
        self._captures: list[Capture] = []
        self._projected: ProjectedStates | None = None  # where hidden widths differ
        self._wide: dict[int, Tensor] = {}
        self._watchers: list[Capture | AttentionMaps | ProjectedStates] = []

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Check that teacher and student can be compared, and return what will be; see `modules.capture` for hooks."""
        if ctx.teacher is None:
            raise LifecycleError("distill: there is no teacher")
        require_configs(model, ctx.teacher, NAME)
        self._model_config = model.config
        self._next_token = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        if self._next_token:
            require_same(model, ctx.teacher, "vocab_size", "vocabularies", NAME)
        else:
            require_same_labels(model, ctx.teacher, NAME)
            if "hard" in self._parts and self._answers(getattr(model.config, "num_labels", 0)) == "numbers":
                raise LifecycleError("distill.hard: a model that answers with numbers decides on no class; set it to 0")
        inner = [name for name in self._parts if name in _INSIDE]
        if inner and getattr(model.config, "is_encoder_decoder", False):
            raise LifecycleError(f"distill.{inner[0]}: an encoder-decoder has two rows of hidden states; set it to 0")
        wants = self.ever_wants & {"hidden_states"}  # attention is returned once `_watch` has asked for it
        logits = "logits" in self._parts or "hard" in self._parts
        require_comparable(model, ctx.teacher, wants, NAME, logits=logits)
        self._check_attention(model, ctx.teacher)
        self._project(model, ctx)
        self._watch(model, ctx.teacher)
        return [_OUTPUTS.get(name, name) for name in self._parts]

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Weights follow their schedules."""
        self._fraction = fraction

    @property
    def wants(self) -> frozenset[str]:
        """Hidden states and attention are asked for only while they are used."""
        return frozenset(_WANTS[name] for name, _ in self._active() if name in _WANTS)

    @property
    def ever_wants(self) -> frozenset[str]:
        """Parts whose schedule starts later count too."""
        return frozenset(_WANTS[name] for name in self._parts if name in _WANTS)

    @property
    def task_weight(self) -> float:
        """Weight of the loss against the labels; while nothing is said of it, what the logits leave of 1."""
        if self.config.task is None:
            return max(0.0, 1.0 - _mapping(self.config.logits, LogitsPart).at(self._fraction))
        return _mapping(self.config.task, Weighted).at(self._fraction)

    def extra_loss(self, batch: Mapping[str, Any], student: Any, teacher: Any) -> Tensor | None:
        """Return the weighted sum of the parts, each a mean over the batch or over its tokens."""
        loss: Tensor | None = None
        seen = Seen(batch, student, teacher)
        for name, weight in self._active():
            value: Tensor = getattr(self, f"_{name}")(self._parts[name], seen)
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value.detach(), count + 1)
            loss = weight * value if loss is None else loss + weight * value
        self._wide = {}
        return loss

    def log(self) -> dict[str, float]:
        """Return the mean of every part, unweighted, since the last call."""
        means = {name: float(total) / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def finalize(self, model: nn.Module) -> None:
        """Take off everything that watched or trained beside the models."""
        detach_companion_(model, NAME)
        for watcher in self._watchers:
            watcher.remove()
        self._watchers, self._captures, self._wide = [], [], {}

    # ------------------------------------------------------------------ what prepare attaches

    def _check_attention(self, model: nn.Module, teacher: nn.Module) -> None:
        """Raise LifecycleError for attention or relations that could not be compared."""
        for name in ("attention", "relations"):
            part: Any = self._parts.get(name)
            if part is None or (name == "attention" and part.heads == "mean"):
                continue
            ours, theirs = attentions_of(model), attentions_of(teacher)
            pairs = layer_pairs(part.layers, len(ours), len(theirs), f"distill.{name}.layers")
            sides = (model, teacher, ours, theirs, pairs)
            if name == "attention":
                require_same_heads(*sides, where="distill.attention")
            else:
                crossed = "query_key" in part.of
                self._relation_heads = relation_heads(*sides, part.heads, where="distill.relations", crossed=crossed)

    def _project(self, model: nn.Module, ctx: Context) -> None:
        """Attach the projections from the student's width to the teacher's, where they differ."""
        parts: dict[str, Any] = {f"distill.{name}": self._parts[name] for name in _STATES if name in self._parts}
        if not parts or ctx.teacher is None:
            return
        modules = projections_to(ctx.teacher, model, parts, ctx, each=self.config.projection == "each")
        if not modules:
            return
        attach_companion_(model, NAME, nn.ModuleList(module for module in modules if module is not None))
        self._projected = ProjectedStates(model, modules, self._wanted)
        self._watchers.append(self._projected)

    def _watch(self, model: nn.Module, teacher: nn.Module) -> None:
        """Attach what reads inside the two models: the student while it trains, the teacher always."""
        if "relations" in self._parts:
            blocks = [list(dict.fromkeys(attentions_of(m))) for m in (model, teacher)]
            self._captures = [Capture(model, blocks[0], always=False), Capture(teacher, blocks[1], always=True)]
            self._watchers += self._captures
        if "attention" in self._parts:
            self._watchers += [AttentionMaps(model, always=False), AttentionMaps(teacher, always=True)]

    # ------------------------------------------------------------------ the parts of the loss

    def _active(self) -> Iterator[tuple[str, float]]:
        """Yield the parts that count now, with their weights."""
        for name, part in self._parts.items():
            weight = part.at(self._fraction)
            # what trains beside the model has to be in every step's graph, or distributed training waits for it
            if weight > 0 or (name in _STATES and self._projected is not None):
                yield name, weight

    def _logits(self, part: LogitsPart, seen: Seen) -> Tensor:
        ours, theirs = seen.logits()
        kind: Answers = "numbers" if part.loss == "mse" else self._answers(ours.shape[-1])
        mask = seen.counted(next_token=self._next_token)
        return divergence(kind, ours, theirs, self.config.temperature, mask)

    def _hard(self, part: Weighted, seen: Seen) -> Tensor:
        ours, theirs = seen.logits()
        binary = self._answers(ours.shape[-1]) == "labels"
        return hard_cross_entropy(ours, theirs, seen.counted(next_token=self._next_token), binary=binary)

    def _answers(self, count: int) -> Answers:
        """Say what the logits are; a config may say so only once its model has seen labels."""
        return answers(getattr(self._model_config, "problem_type", None), count)

    def _hidden(self, part: HiddenPart, seen: Seen) -> Tensor:
        return self._states(part, seen, hidden_mse, "distill.hidden")

    def _cosine(self, part: HiddenPart, seen: Seen) -> Tensor:
        return self._states(part, seen, hidden_cosine, "distill.cosine")

    def _states(self, part: HiddenPart, seen: Seen, loss: Callable[..., Tensor], where: str) -> Tensor:
        """Return the mean over pairs of hidden states, the student's through its projection."""
        own, theirs = self._hidden_states(seen, where)
        ours, depth = {**dict(enumerate(own)), **self._wide}, len(own) - 1
        if part.layers == "nearest":
            require_same_tokens(((ours[i + 1], states) for i in range(depth) for states in theirs[1:]), where)
            found = nearest_pairs([ours[i + 1] for i in range(depth)], theirs[1:], seen.mask(ours[1]))
            pairs = [(s + 1, t + 1) for s, t in found]
        else:
            pairs = state_pairs(part, depth, len(theirs) - 1, where)
        return mean_over(pairs, lambda s, t: loss(s, t, seen.mask(s)), ours, theirs, where)

    def _hidden_states(self, seen: Seen, where: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return both models' hidden states, and keep those of the student that went through a projection."""
        ours, theirs = seen.states(where)
        if self._projected is not None:
            ours, self._wide = self._projected.split(ours)
        return ours, theirs

    def _wanted(self, states: int) -> set[int]:
        """Return which of so many hidden states of the student a loss reads."""
        found = set()
        for name, _ in self._active():
            part = self._parts[name]
            if isinstance(part, HiddenPart):
                found |= {s + 1 for s in student_layers(part.layers, states - 1)}
                found |= {0} if part.embeddings and part.layers != "nearest" else set()
        return found

    def _maps(self, part: MapsPart, seen: Seen) -> Tensor:
        ours, theirs = (states[1:] for states in self._hidden_states(seen, "distill.maps"))
        pairs = layer_pairs(part.layers, len(ours), len(theirs), "distill.maps.layers")
        require_same_tokens(((ours[s], theirs[t]) for s, t in pairs), "distill.maps")
        losses = [activation_map_mse(ours[s], theirs[t], part.power, seen.mask(ours[s])) for s, t in pairs]
        return torch.stack(losses).mean()

    def _attention(self, part: AttentionPart, seen: Seen) -> Tensor:
        ours, theirs = seen.attentions("distill.attention")
        if part.heads == "mean":
            ours, theirs = ([a.mean(1, keepdim=True) for a in maps] for maps in (ours, theirs))
        pairs = layer_pairs(part.layers, len(ours), len(theirs), "distill.attention.layers")
        loss = _ATTENTION_LOSSES[part.loss]
        return mean_over(pairs, lambda s, t: loss(s, t, seen.mask(s[:, 0])), ours, theirs, "distill.attention")

    def _relations(self, part: RelationsPart, seen: Seen) -> Tensor:
        """Return the mean over pairs of layers of the sum over relations (MiniLMv2, eq. 3)."""
        ours, theirs = (capture.take() for capture in self._captures)
        losses = []
        for s, t in layer_pairs(part.layers, len(ours), len(theirs), "distill.relations.layers"):
            mask = seen.mask(ours[s]["value"])
            require_same_tokens([(ours[s]["value"], theirs[t]["value"])], "distill.relations")
            for relation in part.of:
                left, right = _ENDS[relation]
                student, teacher = ((layer[left], layer[right]) for layer in (ours[s], theirs[t]))
                losses.append(relation_kl(student, teacher, self._relation_heads, mask))
        return torch.stack(losses).mean() * len(part.of)


def _mapping(value: Any, kind: type[Weighted]) -> Any:
    return value if isinstance(value, Weighted) else kind(weight=value)


_PARTS: dict[str, type[Weighted]] = {
    "logits": LogitsPart,
    "hard": Weighted,
    "hidden": HiddenPart,
    "cosine": CosinePart,
    "maps": MapsPart,
    "attention": AttentionPart,
    "relations": RelationsPart,
}
_STATES = ("hidden", "cosine")  # parts that compare states of one width
_WANTS = {"hidden": "hidden_states", "cosine": "hidden_states", "maps": "hidden_states", "attention": "attentions"}
_INSIDE = (*_WANTS, "relations")  # parts that look inside the models
_OUTPUTS = {"hidden": "hidden_states"}
