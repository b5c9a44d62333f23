"""Entropy coding at rest: the file holds fewer bits than the weights do in memory, and not one of them is lost."""

from __future__ import annotations

from torch import nn

from ..core.config import StrictModel
from ..core.errors import TargetError
from ..core.method import Category, Context, Method, MethodInfo, Phase
from ..core.registry import register
from ..modules.at_rest import code_at_rest_, coded_at_rest, coded_bytes
from ..modules.bnb import is_bnb


class EntropyCodingConfig(StrictModel):
    """Settings of entropy coding: there are none."""


@register
class EntropyCoding(Method[EntropyCodingConfig]):
    """Stores every tensor that gets smaller by it as a Huffman-coded stream, decoded when the checkpoint is loaded."""

    info = MethodInfo(
        name="entropy_coding",
        title="Entropy coding",
        summary="Codes, masks and floats are stored Huffman-coded, exact to the bit; loading decodes them.",
        category=Category.QUANTIZATION,
        phase=Phase.REST,
        papers=("https://arxiv.org/abs/1510.00149", "https://arxiv.org/abs/2411.05239"),
    )
    Config = EntropyCodingConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Check that another library holds no layer: its loader reads their tensors as they lie in the file."""
        if coded_at_rest(model):
            raise TargetError("entropy_coding: this model is stored so already, and stays so; leave the method out")
        held = next((path for path, module in model.named_modules() if is_bnb(module)), None)
        if held is not None:
            raise TargetError(f"entropy_coding: {held} is held by another library, whose tensors can't be coded")
        return [path for path, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]

    def finalize(self, model: nn.Module) -> None:
        """Mark the model, so that every save of it is coded; TargetError when no tensor would get smaller."""
        self._counts = coded_bytes(model)
        if not self._counts[0]:
            raise TargetError("entropy_coding: no tensor of this model gets smaller by it; leave the method out")
        code_at_rest_(model)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the number of tensors that are stored coded, and their bytes before and after."""
        return dict(zip(("tensors", "bytes_before", "bytes_after"), self._counts, strict=True))
