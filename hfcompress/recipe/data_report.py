"""What was found in a recipe's data, as a plan, a run and a card say it."""

from __future__ import annotations

from pydantic import Field

from ..core.config import StrictModel


class Cut(StrictModel):
    """How many texts of a split are longer than the model reads."""

    texts: int = Field(description="Texts, or pairs of texts, that were cut.")
    of: int
    tokens: int = Field(description="Tokens that were left of them.")


class Overlap(StrictModel):
    """How many examples of the evaluation split a model may have seen."""

    what: str = Field(description="How examples were compared, in words.")
    of: int = Field(description="Examples of the evaluation split.")
    trained: int = Field(description="Those that also stand in the training split.")
    unlabelled: int = Field(0, description="Further ones that stand among the inputs without labels.")
    repeated: int = Field(0, description="Examples that repeat an earlier one of the evaluation split itself.")
    share: float = Field(
        description="What the metric owes to examples that are trained on: their share of the split, of its letters "
        "where the metric counts tokens."
    )


class DataReport(StrictModel):
    """What is to be known of the data that a run trains on and measures on."""

    dropped: dict[str, int] = Field(
        default_factory=dict, description="Rows left out for a missing value, by split; none: there was none."
    )
    cut: dict[str, Cut] = Field(default_factory=dict, description="Texts cut to the longest input, by split.")
    overlap: Overlap | None = None

    def sentences(self) -> list[str]:
        """Return each finding in words."""
        dropped = [
            f"{_count(count, 'row')} of the {_ADJECTIVES.get(name, name)} split {'was' if count == 1 else 'were'} left "
            "out: a value is missing, or an image cannot be read (data.drop_missing)."
            for name, count in self.dropped.items()
            if count
        ]
        cut = [
            f"{_share(cut.texts / cut.of)} of the {_ADJECTIVES.get(name, name)} texts ({cut.texts:,} of {cut.of:,}) "
            f"are longer than {cut.tokens:,} tokens and were cut."
            for name, cut in self.cut.items()
            if cut.texts
        ]
        return dropped + cut + (_overlap(self.overlap) if self.overlap else [])


_ADJECTIVES = {"train": "training", "evaluate": "evaluation"}


def _overlap(found: Overlap) -> list[str]:
    seen = found.trained + found.unlabelled
    lines = [
        f"None of the {found.of:,} evaluation examples is also trained on (compared: {found.what})."
        if not seen
        else f"{where(found)} (compared: {found.what}): the metric is too good by what a model remembers of them."
    ]
    if found.repeated:
        lines.append(
            f"{_count(found.repeated, 'evaluation example')} {'repeats' if found.repeated == 1 else 'repeat'} an "
            "earlier one of the split: the metric counts each of them anew."
        )
    return lines


def where(found: Overlap) -> str:
    """Say how many evaluation examples are trained on too, and where they stand."""
    seen = found.trained + found.unlabelled
    text = f"{seen:,} of {found.of:,} evaluation examples ({_share(seen / found.of)}) are also trained on"
    return text + (f", {found.unlabelled:,} of them as inputs without labels" if found.unlabelled else "")


def _share(value: float) -> str:
    """Return a share in percent, never rounded to none or all."""
    text = f"{value:.1%}" if value < 0.1 or value > 0.99 else f"{value:.0%}"
    if text == "0.0%":
        return "less than 0.1%"
    return "more than 99.9%" if text == "100.0%" and value < 1 else text.replace(".0%", "%")


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
