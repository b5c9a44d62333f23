"""Activation-aware SVD: two factors that lose least in a layer's output on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from ..core.errors import TargetError
from ..core.factorization import CalibratedRankConfig
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..modules.blockwise import observe_all, walk_
from ..modules.lowrank import Split, split_all_
from ..modules.matrix import matrix
from ..modules.splitting import split_
from ..ops.lowrank import decompose, gram_root
from ..ops.moments import Gram


class ActivationSVDConfig(CalibratedRankConfig):
    """Settings of the activation-aware singular value decomposition."""

    sequential: bool = Field(
        False,
        description="Fit every block to what the blocks before it give once they are split, not to the inputs of the "
        "original model; with energy or keep, ranks are chosen by the original inputs.",
    )


@register
class ActivationSVD(Method[ActivationSVDConfig]):
    """Whitens each layer's inputs by their Gram matrix: singular values are then errors of the output (SVD-LLM, 3.1).

    The truncated decomposition in that norm is the projection of the outputs on their principal directions (DRONE,
    theorem 1), which needs no inverse of a Gram matrix that may be singular.
    """

    info = MethodInfo(
        name="activation_svd",
        title="Activation-aware SVD",
        summary="One-shot: two factors per linear layer that keep its outputs on calibration data best.",
        category=Category.LOW_RANK,
        phase=Phase.FACTOR,
        papers=(
            "https://arxiv.org/abs/2403.07378",
            "https://papers.nips.cc/paper/2021/hash/f56de5ef149cf0aedcc8f4797031e229-Abstract.html",
            "https://arxiv.org/abs/2312.05821",
        ),
        needs=Needs(calibration=True),
        alone=True,
        examples={"": {"keep": 0.5}},
    )
    Config = ActivationSVDConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Choose the layers.

        Raises TargetError for one that does not split, a rank that saves nothing, and with `sequential` for a weight
        that several blocks share: it is split once, and those before it can't wait for those after it.
        """
        self._split = Split.choose(model, self.config, self.info.name, tables=False)
        shared = next((tied for tied in self._split.places.values() if len(tied) > 1), None)
        if self.config.sequential and shared:
            raise TargetError(
                f"activation_svd.sequential: {shared[0]} and {shared[1]} share a weight, which is split once, for all "
                "its inputs; leave `sequential` out, or ignore these layers"
            )
        return self._split.paths

    @torch.no_grad()
    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Observe inputs, divide the rank, and split."""
        batches, split = list(batches), self._split
        found = {}
        roots: dict[tuple[int, ...], Tensor] = {}  # layers with the same inputs share one
        places = [place for tied in split.places.values() for place in tied]
        seen = observe_all(model, batches, places, Gram, self.info.title)
        for path, tied in split.places.items():
            grams = [seen[place].matrix for place in tied]  # the error is summed over all layers with the weight
            if (key := tuple(map(id, grams))) not in roots:
                roots[key] = gram_root(torch.stack(grams).sum(0) if len(grams) > 1 else grams[0])
            found[path] = decompose(matrix(model.get_submodule(path)), root=roots[key])
        ranks = split.decide({path: f.squares for path, f in found.items()})
        if not self.config.sequential:
            split_all_(model, found, ranks)
        else:
            found.clear()

            def compress(paths: list[str], inputs: Gram) -> None:
                root = gram_root(inputs.matrix)
                for path in paths:
                    weight = matrix(model.get_submodule(path))
                    split_(model, path, *decompose(weight, root=root).cut(ranks[path] or 0))

            walk_(model, batches, [p for p, r in ranks.items() if r is not None], Gram, compress, self.info.title)

    def assume(self, model: nn.Module) -> None:
        """Let all inputs count alike."""
        found = {path: decompose(matrix(model.get_submodule(path))) for path in self._split.paths}
        split_all_(model, found, self._split.decide({path: f.squares for path, f in found.items()}))

    def finalize(self, model: nn.Module) -> None:
        """Nothing is left to do."""

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return layers split and left whole, their weights before and after, and the least and largest rank."""
        return self._split.report()
