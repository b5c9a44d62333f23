"""The code a card shows for loading its model; the very text that is executed before anything is published."""

from __future__ import annotations

from ..measure.result import Result
from ..train.tasks import tasks
from .template import render


def loading_snippet(result: Result, location: str) -> str:
    """Return a program that loads the model from `location`, a Hub id or a folder, and prints one prediction.

    It leaves `model` and `logits`, (1, labels) of a classifier, (1, tokens, vocabulary) of a language model, in its
    namespace.
    """
    image = takes_images(result)
    processor = "AutoImageProcessor" if image else "AutoTokenizer"
    return render(
        "load.py.jinja",
        result=result,
        location=location,
        image=image,
        classes=[result.auto_class, processor],
        prediction=prediction(result),
    )


def onnx_snippet(result: Result, location: str, *, hub: bool) -> str | None:
    """Return a program that runs the smallest ONNX file of the compressed model, or None when there is none.

    `hub` says whether `location` is a Hub id. The program leaves `logits`, a numpy array, in its namespace.
    """
    sizes = {name: size for name, size in result.compressed.exports.items() if name.endswith(".onnx")}
    if not sizes:
        return None
    image = takes_images(result)
    return render(
        "load_onnx.py.jinja",
        file=min(sizes, key=lambda name: (sizes[name], name)),
        location=location,
        hub=hub,
        image=image,
        processor="AutoImageProcessor" if image else "AutoTokenizer",
    )


def takes_images(result: Result) -> bool:
    """Return whether the model's input is an image."""
    return result.task in tasks() and tasks()[result.task].main_input == "pixel_values"


def prediction(result: Result) -> str:
    """Return what the task's logits say: "label", "next token", or "logits" where that is not known."""
    return tasks()[result.task].prediction if result.task in tasks() else "logits"
