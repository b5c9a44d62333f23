"""What was found in a recipe's data, as a plan, a run and a card say it."""

from __future__ import annotations

from pydantic import Field

from ..core.config import StrictModel
from ..core.shares import share


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


class Repeats(StrictModel):
    """How many examples of a split occur in it more than once."""

    what: str = Field(description="What one of them is: text, pair of texts or image.")
    examples: int = Field(description="Examples that occur more than once, each counted once.")
    rows: int = Field(description="Rows that hold them.")
    contradictory: int = Field(0, description="Those of these examples that occur with different labels.")
    shown: str = Field("", description="Two rows with one of these and different labels, in words.")


class DataReport(StrictModel):
    """What is to be known of the data that a run trains on and measures on."""

    dropped: dict[str, int] = Field(
        default_factory=dict, description="Rows left out for a missing value, by split; none: there was none."
    )
    cut: dict[str, Cut] = Field(default_factory=dict, description="Texts cut to the longest input, by split.")
    overlap: Overlap | None = None
    repeats: dict[str, Repeats] = Field(
        default_factory=dict, description="Examples that repeat within a split, by split; none: no example does."
    )

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
        repeats = [line for name, found in self.repeats.items() if (line := _repeated(name, found))]
        return [*dropped, *cut, *repeats, *(_overlap(self.overlap) if self.overlap else [])]


_ADJECTIVES = {"train": "training", "evaluate": "evaluation"}
_PLURALS = {"text": "texts", "pair of texts": "pairs of texts", "image": "images"}


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


def _repeated(split: str, found: Repeats) -> str:
    """Say how many examples of a split repeat, and how many with other labels; "" where there is nothing to say.

    Of what is measured on the copies are told elsewhere, only the labels are told here.
    """
    example = f" ({found.shown})" if found.shown else ""
    if split == "evaluate":
        many = f"{_some(found.contradictory, split, found.what, 'stands', 'stand')} in the split with different labels"
        return f"{many}{example}: no model gets all of them right." if found.contradictory else ""
    many = f"{_some(found.examples, split, found.what, 'occurs', 'occur')} more than once ({found.rows:,} rows)"
    if not found.contradictory:
        return f"{many}."
    part = "" if found.examples == 1 else f"{found.contradictory:,} of them "
    return f"{many}, {part}with different labels{example}."


def _some(count: int, split: str, what: str, one: str, several: str) -> str:
    noun, verb = (what, one) if count == 1 else (_PLURALS.get(what, what), several)
    return f"{count:,} {_ADJECTIVES.get(split, split)} {noun} {verb}"


def where(found: Overlap) -> str:
    """Say how many evaluation examples are trained on too, and where they stand."""
    seen = found.trained + found.unlabelled
    text = f"{seen:,} of {found.of:,} evaluation examples ({_share(seen / found.of)}) are also trained on"
    return text + (f", {found.unlabelled:,} of them as inputs without labels" if found.unlabelled else "")


def _share(value: float) -> str:
    """Return a share in percent, with a decimal where it is small or close to all."""
    return share(value).replace(".0%", "%") if value < 0.1 or value > 0.99 else f"{value:.0%}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
