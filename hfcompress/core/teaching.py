"""Settings of what a student can learn from its teacher, a part of the loss each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .layer_map import LAYERS_HELP, FixedMap
from .schedule import Weighted

Relation = Literal["query", "key", "value", "query_key"]


class LogitsPart(Weighted):
    """Learning from the teacher's logits."""

    weight: float = Field(0.9, ge=0, description="Factor on this part of the loss; with a schedule, at its end.")
    loss: Literal["kl", "mse"] = Field(
        "kl", description="kl: softened by the temperature (Hinton 2015); mse: squared error (Ba & Caruana 2014)."
    )


class HiddenPart(Weighted):
    """Learning from hidden states; where widths differ, a projection is trained beside the student."""

    layers: FixedMap | Literal["nearest"] = Field(
        "uniform",
        description=f"{LAYERS_HELP} nearest: to each the one with the smallest squared error in this batch (CoFi).",
    )
    embeddings: bool = Field(True, description="Whether what the embeddings give meets too, with a fixed map.")


class CosinePart(HiddenPart):
    """Learning the direction of hidden states (DistilBERT)."""

    layers: FixedMap | Literal["nearest"] = Field("last", description="As in `hidden`.")
    embeddings: bool = Field(False, description="As in `hidden`.")


class MapsPart(Weighted):
    """Learning where activations are strong, whatever their width (attention transfer, Zagoruyko 2017)."""

    layers: FixedMap = Field("uniform", description=LAYERS_HELP)
    power: float = Field(2.0, gt=0, description="Activations are summed over channels to this power (eq. 1: p).")


class AttentionPart(Weighted):
    """Learning from attention; both models then compute it eagerly, the one way that returns it."""

    layers: FixedMap = Field("uniform", description=LAYERS_HELP)
    loss: Literal["mse", "scores", "kl"] = Field(
        "mse",
        description="mse: squared error of probabilities; scores: of the scores before softmax (TinyBERT); kl: "
        "divergence of probabilities (MiniLM, with `layers: last`).",
    )
    heads: Literal["each", "mean"] = Field("each", description="mean: of all heads, for models that differ in number.")


class RelationsPart(Weighted):
    """Learning which tokens are alike to the teacher's queries, keys and values (MiniLM, MiniLMv2)."""

    layers: FixedMap = Field("last", description=LAYERS_HELP)
    of: tuple[Relation, ...] = Field(
        ("query", "key", "value"),
        min_length=1,
        description="Relations of queries, keys, values, each among themselves (MiniLMv2; MiniLM: [value]); query_key: "
        "of queries with keys, which is attention itself.",
    )
    heads: int | None = Field(
        None, ge=1, description="Relation heads that every width is cut into; by default the teacher's attention heads."
    )
