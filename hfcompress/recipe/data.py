"""The recipe's data section: where examples come from, how they are cut, and how training images change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictInt, field_validator, model_validator

from ..core.config import StrictModel

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]*\w[\w.-]*)?")


def _as_labels(value: Any) -> Any:
    """Let labels be called as YAML reads them: keys are text, and values too where they are no numbers of classes."""
    if not isinstance(value, Mapping):
        return value
    return {_label(key): _label(name) if isinstance(name, bool | float) else name for key, name in value.items()}


def _label(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int | float) else value


LabelNames = Annotated[dict[str, Annotated[str, Field(min_length=1)] | StrictInt], BeforeValidator(_as_labels)]


class Columns(StrictModel):
    """Which column holds what; a name left out is looked for under the task's usual names."""

    text: str | None = Field(None, description="Column of the text; usual names: text, sentence.")
    text_pair: str | None = Field(None, description="Column of the second text, for tasks on pairs; none by default.")
    image: str | None = Field(None, description="Column of the image; usual names: image, img.")
    label: str | None = Field(None, description="Column of the label; usual names: label, labels.")


class Splits(StrictModel):
    """Which splits to use; each may be a slice such as 'train[:80%]' or a sum such as 'train+extra'."""

    train: str = Field("train", description="Split to train on.")
    evaluate: str | None = Field(
        None,
        description="Split to measure on; by default validation, dev or test, else a part of the training split.",
    )
    held_out: bool = Field(
        False,
        description="Measure on a part of the training split (`validation_fraction` of it, not trained on) though "
        "there is a split to measure on: for settings that are still being chosen, so that it stays unseen.",
    )


class Masking(StrictModel):
    """Which tokens a masked language model has to fill in (BERT: of these, 80% masked, 10% random, 10% as they are)."""

    share: float = Field(0.15, gt=0, lt=1, description="Share of tokens to fill in.")
    whole_words: bool = Field(
        False, description="Choose whole words; then every chosen token is masked, as transformers' collator does."
    )


class Crop(StrictModel):
    """A random part of each training image: shifted over padding, or cut out and enlarged; one of the two."""

    padding: int = Field(
        0, ge=0, description="Black pixels put on every side before a part of the image's size is cut (CIFAR: 4)."
    )
    area: tuple[float, float] = Field(
        (1.0, 1.0), description="Least and largest share of the image to cut and enlarge (ImageNet: [0.08, 1])."
    )
    ratio: tuple[float, float] = Field(
        (3 / 4, 4 / 3), description="Least and largest width-to-height ratio of what `area` cuts."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Crop:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError("'area' is a range of shares such as [0.35, 1]: above 0, at most 1, the least first")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError("'ratio' is a range such as [0.75, 1.33]: above 0, the least first")
        if (self.padding > 0) == (self.area[0] < 1):
            raise ValueError("give one of 'padding' (pixels) and 'area' (a range such as [0.35, 1])")
        return self


class Augment(StrictModel):
    """How training images change at random from one epoch to the next; what is measured on never does."""

    flip: float = Field(0.0, ge=0, le=1, description="Share of images mirrored left to right; usual: 0.5.")
    crop: Crop | None = Field(None, description="Cut a random part of each image; default: no.")

    mixup: float = Field(
        0.0,
        ge=0,
        description="Blend two images and their labels; shares are drawn from Beta(mixup, mixup); usual: 0.2.",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        description="Paste a box of another image, with that share of its label; Beta(cutmix, cutmix), usual: 1. With "
        "mixup, every batch gets one of the two, evenly.",
    )
    views: int = Field(
        0,
        ge=0,
        description="How many changed forms each image has, of which every epoch draws one: `teacher_cache` then keeps "
        "the teacher's answer to each. Not with mixup or cutmix. Default: a new one every time.",
    )

    @model_validator(mode="after")
    def _changes_something(self) -> Augment:
        if not (self.flip or self.crop or self.mixup or self.cutmix):
            raise ValueError("set one of flip, crop, mixup, cutmix; with none no image would change")
        if self.views and (self.mixup or self.cutmix):
            raise ValueError("'views' cannot go with mixup or cutmix, which mix whatever images meet in a batch")
        return self


class Origin(StrictModel):
    """Where examples come from; exactly one of `dataset` and `path`."""

    dataset: str | None = Field(
        None,
        description="Hub name, such as 'stanfordnlp/sst2', or 'sklearn:<name>' for images that scikit-learn ships.",
    )
    path: str | None = Field(
        None,
        description="Local file (parquet, csv, tsv, json, jsonl, txt; text files may be packed, as .csv.gz), folder of "
        "<split>.parquet/csv/… files, folder made by `save_to_disk`, or image folder (<split>/<label>/*.png).",
    )
    config: str | None = Field(None, description="Configuration name of a Hub data set.")
    revision: str | None = Field(None, description="Commit, tag or branch of a Hub data set.")
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="What separates the cells of csv and tsv files; default: the one of comma, tab, semicolon and bar "
        "that the line of column names shows.",
    )
    encoding: str | None = Field(
        None,
        description="Encoding of text files in `path`, such as 'cp1252'; default: what the file's first bytes mark, "
        "else UTF-8.",
    )

    @field_validator("dataset")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        """Refuse what `datasets` would take for a folder, and read all that lies in it."""
        if value is not None and not value.startswith("sklearn:") and not _HUB_NAME.fullmatch(value):
            raise ValueError("give a name on the Hub, such as 'stanfordnlp/sst2'; local files go under 'path'")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Origin:
        if (self.dataset is None) == (self.path is None):
            raise ValueError("give exactly one of 'dataset' (a Hub name) and 'path' (a file or folder)")
        if self.path is not None and (self.config or self.revision):
            raise ValueError("'config' and 'revision' belong to a Hub data set, not to 'path'")
        if self.path is None and (self.delimiter or self.encoding):
            raise ValueError("'delimiter' and 'encoding' belong to local files ('path'), not to a Hub data set")
        return self

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        try:
            "".encode(name or "utf-8")
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"Python knows no text encoding {name!r}; usual: utf-8, utf-16, cp1252, latin-1"
            ) from error
        return name


class Unlabelled(Origin):
    """Inputs without labels, for the teacher to label (a transfer set)."""

    columns: Columns = Field(default_factory=Columns, description="Which column holds what; a label is not read.")
    split: str = Field("train", description="Split to use; may be a slice such as 'train[:80%]' or a sum.")
    max_examples: int | None = Field(None, ge=1, description="Use at most this many examples, drawn with the seed.")


class Data(Origin):
    """Where examples come from and how they are cut; exactly one of `dataset` and `path`."""

    columns: Columns = Field(default_factory=Columns, description="Which column holds what.")
    splits: Splits = Field(default_factory=Splits, description="Which splits to use.")
    drop_missing: bool = Field(
        False,
        description="Leave out rows without a label, or without a text or image that can be read, and say how many; "
        "false: they are an error. Every image is then decoded once to see whether it can be.",
    )
    allow_leakage: bool = Field(
        False,
        description="Measure though more than 1% of the evaluation split is trained on too, or though the recipe "
        "evaluates on rows it trains on.",
    )
    validation_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of the training split held out, by label, when no other split is measured on.",
    )
    max_train: int | None = Field(None, ge=1, description="Train on at most this many examples, drawn with the seed.")
    max_evaluate: int | None = Field(
        None, ge=1, description="Evaluate on at most this many examples, drawn with the seed."
    )
    max_length: int | None = Field(None, ge=2, description="Longest text in tokens; by default the tokenizer's limit.")
    image_size: int | None = Field(None, ge=1, description="Pixels per side; by default what the image processor says.")
    labels: LabelNames | None = Field(
        None,
        min_length=1,
        description="Which class of the model a label of the data is, such as {good: positive, bad: negative} or, of "
        "numbers, {1: negative, 2: positive}: a class by its name or number. Labels left out are matched by name; with "
        "`finetune` these are the names of the new classes.",
    )
    allow_unknown_tokens: bool = Field(
        False, description="Go on though more than a fifth of the data's tokens are unknown to the tokenizer."
    )
    join: bool = Field(
        True,
        description="Language modelling: join texts and cut them into blocks of max_length tokens; false (fill-mask): "
        "each text by itself, padded.",
    )
    masking: Masking = Field(default_factory=Masking, description="Task fill-mask: which tokens are to be filled in.")
    augment: Augment | None = Field(None, description="Images: how training images change at random; default: not.")

    unlabelled: Unlabelled | None = Field(
        None,
        description="Further inputs without labels, mixed into what stages with a teacher train on: the teacher labels "
        "them, and the loss against labels leaves them out.",
    )
