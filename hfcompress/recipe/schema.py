"""The recipe as typed, immutable data: what to compress, on which data, in which stages, and what to measure."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .. import methods as _builtin  # noqa: F401 - importing it fills the registry that `create` reads
from ..core.config import EITHER, MAPPING, PLAIN, StrictModel
from ..core.errors import RecipeError, nearest, shown
from ..core.registry import create
from ..core.student import StudentConfig
from .data import Data
from .plain import can_be_a_place
from .shape import Shapes
from .training import check_train

Engine = Literal[
    "pytorch",
    "pytorch-compile",
    "onnxruntime",
    "onnxruntime-int8",
    "onnxruntime-static-int8",
    "onnxruntime-w8",
    "onnxruntime-w4",
    "openvino",
    "openvino-int8",
]
ENGINES: tuple[Engine, ...] = ("pytorch", "onnxruntime", "onnxruntime-int8")

REPO_ID = r"^[\w.-]+(/[\w.-]+)?$"
_REQUIREMENT = re.compile(r"(>=|<=|>|<)\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def _requirement(value: Any) -> Any:
    if not isinstance(value, str) or not _REQUIREMENT.fullmatch(value.strip()):
        raise ValueError("write a comparison with a number in quotes, such as '>=8' or '<=0.01'")
    return value.strip()


Bound = Annotated[str, BeforeValidator(_requirement), AfterValidator(str)]  # such as ">=8"


def _model_source(value: Any) -> Any:
    if isinstance(value, dict):
        _check_config(value)
    elif not isinstance(value, str) or not value:
        raise ValueError("give a Hub id, a folder, or a mapping with 'model_type' to start from scratch")
    return value


def _check_config(fields: dict[str, Any]) -> None:
    """Refuse what `transformers` would silently keep as an attribute nobody reads."""
    kind = fields.get("model_type")
    if not isinstance(kind, str):
        raise ValueError("a model from scratch needs 'model_type', such as 'vit'")
    if kind not in CONFIG_MAPPING_NAMES:
        raise ValueError(f"transformers has no model_type {kind!r}.{nearest(kind, CONFIG_MAPPING_NAMES)}")
    config = AutoConfig.for_model(kind)
    known = {*config.to_dict(), *config.attribute_map} - {"transformers_version", "id2label", "label2id"}
    for key in fields:
        if key in ("num_labels", "id2label", "label2id"):
            raise ValueError(f"{key!r} comes from the data; leave it out")
        if key not in known:
            raise ValueError(f"a {kind!r} config has no field {key!r}.{nearest(str(key), known)}")


class Stage(StrictModel):
    """One pass, in which its methods act together if it trains, else phase by phase; stages follow each other."""

    name: str | None = Field(None, description="Name in logs and on the card; by default its methods' names.")
    methods: dict[str, dict[str, Any]] = Field(min_length=1, description="Settings by method name.")
    train: dict[str, Any] | None = Field(
        None, description="Any field of transformers.TrainingArguments; null: a one-shot stage without training."
    )

    @field_validator("methods", mode="before")
    @classmethod
    def _empty_settings(cls, value: Any) -> Any:
        if isinstance(value, dict):  # `quantize_weights:` alone on its line is null in YAML
            return {name: {} if settings is None else settings for name, settings in value.items()}
        return value

    @property
    def title(self) -> str:
        """The stage's name, or its methods' names joined by '+'."""
        return self.name or "+".join(self.methods)


class Finetune(StrictModel):
    """Train the model on the data before compressing; the result is the baseline and the default teacher."""

    train: dict[str, Any] = Field(default_factory=dict, description="Any field of transformers.TrainingArguments.")


class TeacherCache(StrictModel):
    """What is kept on disk of the teacher's outputs."""

    top_k: int = Field(
        64, ge=1, description="Of logits for every token, the largest of each that are kept; of a classifier, all are."
    )


class Evaluate(StrictModel):
    """How quality is measured, in every engine of the benchmark."""

    metric: str | None = Field(
        None,
        description="Metric of the task, or the path of a local `evaluate` script (of an error, its class has "
        "`higher_is_better = False`); by default the task's first (accuracy, or perplexity of a language model).",
    )
    batch_size: int = Field(32, ge=1, description="Examples per forward pass.")
    control: bool = Field(
        False,
        description="Also give the uncompressed model the same training and teacher, for comparison; doubles training.",
    )
    allow_trivial: bool = Field(
        False,
        description="Go on though the model is, before it is compressed, no better than a guess that looks at no "
        "example, such as always the most frequent class.",
    )


class Benchmark(StrictModel):
    """How latency is measured: interleaved rounds, one process per engine."""

    engines: list[Engine] = Field(
        list(ENGINES), min_length=1, description="What executes inference; also says what is exported."
    )
    shapes: Shapes = Field(
        None,
        description="Workloads, each as BATCHxLENGTH (of images BATCHxPIXELS) or a mapping, such as [1x32, {batch: 8, "
        "length: 128}]; by default 1x32 and 8x128 tokens, or 1 and 16 images.",
    )
    real_lengths: int | None = Field(
        None,
        ge=1,
        description="Also time so many examples of the evaluation split, evenly spaced, as they come: one at a time, "
        "each of its own length; null: fixed shapes only.",
    )
    calibration: int = Field(
        300,
        ge=1,
        description="Examples of the training split that give activations a grid where the checkpoint has none, in "
        "onnxruntime-static-int8 and openvino-int8.",
    )
    threads: int | None = Field(None, ge=1, description="Threads per engine; by default all cores.")
    rounds: int = Field(7, ge=1, description="Interleaved rounds per shape; each gives one median.")
    seconds: float = Field(5.0, gt=0, description="Seconds per engine and shape, all models together.")


class Publish(StrictModel):
    """Where `hfcompress push` uploads to."""

    repo_id: str = Field(pattern=REPO_ID, description="Repository on the Hub, as 'user/name'.")
    private: bool = Field(False, description="Create the repository as a private one.")
    code: bool = Field(
        False,
        description="Upload the loader as source files too: the model then loads without this package, with "
        "trust_remote_code=True.",
    )


class Recipe(StrictModel):
    """Everything a run is told; the same recipe, seed and machine give the same result."""

    title: str | None = Field(None, description="Title of the card.")
    model: Annotated[str | dict[str, Any], BeforeValidator(_model_source)] = Field(
        description="Hub id, folder, or a mapping with 'model_type' and config fields to start from scratch."
    )
    revision: str | None = Field(None, description="Commit, tag or branch of the model on the Hub.")
    merge_adapters: bool = Field(
        False,
        description="Where model, teacher or student is an adapter of peft: merge it into its base model first, which "
        "is then the baseline. false: an adapter is refused.",
    )
    processor: str | None = Field(
        None, description="Hub id or folder of the tokenizer or image processor; by default the model's own."
    )
    dtype: Literal["float32", "auto", "bfloat16"] = Field(
        "float32",
        description="Type of the float weights in memory and in the result; auto: as the checkpoint stores them, which "
        "needs half the memory for a bfloat16 one.",
    )
    task: str = Field(description="Pipeline tag, such as 'text-classification' or 'image-classification'.")
    data: Data = Field(description="Where examples come from.")
    finetune: Finetune | None = Field(None, description="Train the model on the data before compressing it.")
    teacher: str | None = Field(
        None, description="Hub id or folder of the model distilled from; by default the baseline."
    )
    student: Annotated[Annotated[str, PLAIN] | Annotated[StudentConfig, MAPPING], EITHER] | None = Field(
        None,
        description="What the stages act on, if not the model itself, which is then baseline and teacher: Hub id or "
        "folder of a smaller one, or the sizes of one to derive from it.",
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of everything random.")
    stages: list[Stage] = Field(min_length=1, description="The passes of compression, in order.")
    evaluate: Evaluate = Field(default_factory=Evaluate, description="How quality is measured.")
    teacher_cache: bool | TeacherCache = Field(
        False,
        description="true, or settings: run the teacher once on every example and keep its logits on disk, for every "
        "later epoch, stage, seed and run. Off by itself where inputs change at random, or a method reads more of the "
        "teacher than its logits.",
    )
    benchmark: Benchmark | None = Field(
        default_factory=Benchmark, description="How latency is measured; null: not at all."
    )
    require: dict[str, Bound] = Field(
        default_factory=dict,
        description="What the run must reach, such as size_ratio: '>=8'; else it ends with status 3.",
    )
    publish: Publish | None = Field(None, description="Where to upload to.")

    @model_validator(mode="after")
    def _check_contents(self) -> Recipe:
        problems = [] if self.finetune is None else check_train(self.finetune.train, "finetune.train")
        if self.student is not None and all(stage.train is None for stage in self.stages):
            problems.append("student: it has to learn: add a stage with `train:`.")
        for index, stage in enumerate(self.stages):
            problems += _check_methods(stage, f"stages.{index}.methods")
            problems += check_train(stage.train or {}, f"stages.{index}.train")
        if not problems and not any(_has_teacher(stage) for stage in self.stages):
            problems += self._unheard()
        problems += [
            f"{key}: no file or folder can be called {shown(name)}."
            for key, name in self.places().items()
            if not can_be_a_place(name)
        ]
        if problems:
            raise RecipeError("\n".join(problems))
        return self

    def places(self) -> dict[str, str]:
        """Return, by key, what may name a local file or folder."""
        more = self.data.unlabelled
        keys = {key: getattr(self, key) for key in ("model", "processor", "teacher", "student")}
        keys |= {"data.path": self.data.path, "data.unlabelled.path": more.path if more else None}
        return {key: name for key, name in keys.items() if isinstance(name, str)}

    def _unheard(self) -> list[str]:
        """Return what is said of a teacher in a recipe that has none."""
        keys = {"data.unlabelled": self.data.unlabelled is not None, "teacher_cache": self.teacher_cache is not False}
        return [
            f"{key}: no stage that trains has a method with a teacher, so it would do nothing: add such a method, or "
            "leave it out."
            for key, given in keys.items()
            if given
        ]


def _has_teacher(stage: Stage) -> bool:
    return stage.train is not None and any(create(name, given).needs.teacher for name, given in stage.methods.items())


def _check_methods(stage: Stage, where: str) -> list[str]:
    problems = []
    for name, settings in stage.methods.items():
        try:
            create(name, settings, where)
        except RecipeError as error:
            problems.append(str(error))
    return problems
