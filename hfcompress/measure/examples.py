"""A few examples with what both models say of them, for people to look at: in a file of the run folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import Field, ValidationError

from ..core.config import StrictModel
from ..core.errors import MeasureError
from ..core.files import write_text, writing

EXAMPLES, IMAGES = "examples.json", "examples-images.png"
SHOWN, SIDE = 12, 96  # images, and the pixels of each one's longer side at most
DIFFERING = 4  # of them, at most, are chosen because the models disagree


class Example(StrictModel):
    """One example of the evaluation split."""

    row: int = Field(description="Its place in the evaluation split.")
    label: str
    baseline: str = Field(description="What the model says.")
    compressed: str = Field(description="What the compressed model says.")
    chosen: bool = Field(description="Whether it was chosen because the two disagree; else drawn at random.")


class Examples(StrictModel):
    """The examples; their images lie side by side in one file, each `side` pixels square."""

    side: int
    total: int = Field(description="Examples of the evaluation split.")
    disagreements: int = Field(description="Those on which the two models disagree.")
    examples: list[Example]


def choose(baseline: np.ndarray, compressed: np.ndarray, seed: int) -> list[tuple[int, bool]]:
    """Return row numbers and whether each was chosen for a disagreement: a random sample first, then those."""
    rng = np.random.default_rng(seed)
    differ = baseline != compressed
    room = min(DIFFERING, int(differ.sum()))
    drawn, rest = np.split(rng.permutation(len(baseline)), [SHOWN - room])
    differing = [row for row in rest.tolist() if differ[row]][:room]  # those not drawn anyway
    return [*((row, False) for row in drawn.tolist()), *((row, True) for row in differing)]


def write_examples(
    path: Path,
    said: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    names: Callable[[int], str],
    picture: Callable[[int], np.ndarray],
    seed: int,
) -> None:
    """Write the file and the images beside it; `said` holds both models' classes (N,), the baseline's first."""
    baseline, compressed = said
    rows = choose(baseline, compressed, seed)
    examples = [
        Example(
            row=row,
            label=names(int(labels[row])),
            baseline=names(int(baseline[row])),
            compressed=names(int(compressed[row])),
            chosen=chosen,
        )
        for row, chosen in rows
    ]
    tiles = [_tile(picture(row)) for row, _ in rows]
    side = max(tile.width for tile in tiles)
    sheet = Image.new("RGB", (side * len(tiles), side), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place * side, 0))
    with writing(path.with_name(IMAGES)) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    found = Examples(side=side, total=len(labels), disagreements=int((baseline != compressed).sum()), examples=examples)
    write_text(path, found.model_dump_json(indent=2) + "\n")


def read_examples(folder: Path) -> tuple[Examples, list[Image.Image]] | None:
    """Return the examples of a run and their images; None where it left none, MeasureError where they are damaged."""
    path = folder / EXAMPLES
    if not path.exists():
        return None
    try:
        found = Examples.model_validate_json(path.read_text(encoding="utf-8"))
        with Image.open(folder / IMAGES) as sheet:
            sheet.load()
            tiles = [
                sheet.crop((i * found.side, 0, (i + 1) * found.side, found.side)) for i in range(len(found.examples))
            ]
    except (OSError, ValidationError) as error:
        raise MeasureError(f"{path} and its images cannot be read: {error}") from error
    return found, tiles


def _tile(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    square = Image.new("RGB", (max(image.size),) * 2, "white")
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    return square
