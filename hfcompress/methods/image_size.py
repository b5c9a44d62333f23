"""Fewer input pixels: the model's image processor gives smaller images, and the model is fitted to them."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from ..core.config import StrictModel
from ..core.errors import LifecycleError, TargetError
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.registry import register
from ..modules.pixels import fit_pixels_, pixels_of, require_pixels, resize_


class ImageSizeConfig(StrictModel):
    """Settings of the image size; train after it."""

    pixels: int = Field(
        ge=1,
        description="Pixels per side of the images the model reads from now on, of a transformer a multiple of its "
        "patch. Work falls with the square.",
    )


@register
class ImageSize(Method[ImageSizeConfig]):
    """Shrinks the images a model reads: its processor's size, and its position embeddings, interpolated once."""

    info = MethodInfo(
        name="image_size",
        title="Smaller images",
        summary="The model's image processor gives fewer pixels, and its position embeddings are interpolated once.",
        category=Category.COMPACT,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/1906.06423", "https://arxiv.org/abs/1905.11946"),
        needs=Needs(processor=True),
        alone=True,  # what others would count in the same stage is of images of the old size
        examples={"": {"pixels": 8}},
    )
    Config = ImageSizeConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Check that model and processor can be fitted, and return what changes.

        Raises LifecycleError without an image processor, TargetError when the images are no larger or the model takes
        one size only.
        """
        pixels = self.config.pixels
        try:
            require_pixels(model, pixels)
        except TargetError as error:
            raise TargetError(f"image_size: {error}") from error
        before = pixels_of(ctx.processor)
        if before is None:
            raise LifecycleError(
                "image_size: the processor shrinks its images with the model: pass processor=<the model's image "
                "processor>"
            )
        if not getattr(ctx.processor, "do_resize", True):
            raise TargetError("image_size: this image processor leaves images as large as they are (do_resize: false)")
        if pixels >= before:
            raise TargetError(f"image_size: images have {before} pixels per side already (pixels: {pixels})")
        self._processor, self._before = ctx.processor, before
        return ["pixel_values"]

    def finalize(self, model: nn.Module) -> None:
        """Fit the model and its processor."""
        fit_pixels_(model, self.config.pixels)
        resize_(self._processor, self.config.pixels)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the pixels per side before and after."""
        return {"pixels_before": self._before, "pixels_after": self.config.pixels}
