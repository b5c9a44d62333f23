"""What a task is: its head, columns, processor, encoding, collator and metrics; and the table of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import transformers
from datasets import Dataset

from ...checkpoint.load import require_folder
from ...core.errors import CheckpointError, RecipeError, RemoteCodeError, nearest
from ...core.foreign_internals import model_class_names
from ...core.metric import Metric
from ...core.pretrained import from_pretrained
from ...ops.reductions import REDUCTIONS
from ...recipe.data import Data
from ...recipe.data_report import Cut
from ...recipe.shape import Shape

if TYPE_CHECKING:
    from .labels import DataLabels

Collator = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]

_TASKS: dict[str, Task] = {}
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, CheckpointError)


class Task(ABC):
    """One kind of job; a new one is one file with a subclass, decorated with `register_task`."""

    name: ClassVar[str]  # pipeline tag of the Hub
    auto_class: ClassVar[str]
    main_input: ClassVar[str]  # name of the model's input whose last dimension the benchmark varies
    columns: ClassVar[Mapping[str, tuple[str, ...]]]  # needed role -> usual column names
    optional: ClassVar[tuple[str, ...]] = ()  # further roles, only used when the recipe names their column
    metrics: ClassVar[Mapping[str, Metric]]  # called with predictions and labels; the first is the default
    reduction: ClassVar[str] = "logits"  # what is kept of each batch's logits: a key of REDUCTIONS
    counted: ClassVar[str] = "examples"  # what `answers` has one for each of
    prediction: ClassVar[str] = (
        "logits"  # what a card's code prints: "label", "next token", "masked token", or "logits"
    )

    @property
    def model_class(self) -> Any:
        """The transformers class whose from_pretrained and from_config build the model."""
        return getattr(transformers, self.auto_class)

    @abstractmethod
    def load_processor(self, source: str | None, config: Any, data: Data, revision: str | None = None) -> Any:
        """Load the tokenizer or image processor from `source`, or build one for `config` when it is None."""

    @abstractmethod
    def head_config(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return the config keywords that give a model a head for these labels."""

    @abstractmethod
    def read_labels(
        self, splits: Mapping[str, Dataset], names: list[str] | None, given: Iterable[str] = ()
    ) -> tuple[dict[str, Dataset], DataLabels | None]:
        """Turn label columns into numbers; `names` are those that lie beside the data. None: the data has no labels.

        `given`: the labels that the recipe says something of.
        """

    def classes(self, config: Any) -> Sequence[str]:
        """Return the names of a model's classes where it puts out a logit for each, (examples, classes); else none."""
        return ()

    @abstractmethod
    def check_inputs(self, dataset: Dataset, split: str) -> Dataset:
        """Return the dataset with input columns in their canonical type; DataError when they hold something else."""

    def joins(self, data: Data) -> bool:
        """Say whether texts are joined, so that one may be a blank line and none is an example by itself."""
        return False

    def unreadable(self, dataset: Dataset) -> np.ndarray:
        """Return which rows with canonical columns hold an input that cannot be read, (rows,) of bool."""
        return np.zeros(len(dataset), dtype=bool)

    @abstractmethod
    def keys(self, splits: Sequence[tuple[Dataset, Dataset]]) -> tuple[list[np.ndarray], str]:
        """Return hashes of inputs that are alike for like examples, (rows,) of uint64 for each split; 0 is no example.

        Each split comes with canonical columns and encoded. Also returned is what was compared, in words.
        """

    def cut(self, dataset: Dataset, encoded: Dataset, processor: Any, data: Data) -> Cut | None:
        """Return how many texts of a split the encoding cut; None when it cuts none."""
        return None

    @abstractmethod
    def encode(self, dataset: Dataset, processor: Any, data: Data) -> Dataset:
        """Return model inputs and `labels`, processed once where memory allows."""

    def for_evaluation(self, encoded: Dataset, processor: Any, data: Data) -> Dataset:
        """Return encoded examples with all that is random about them fixed, so that models can be compared on them."""
        return encoded

    @abstractmethod
    def collator(self, processor: Any, data: Data | None = None, seed: int = 0) -> Collator:
        """Return the function that turns encoded examples into a batch of tensors.

        One that changes the model's inputs at random does so by `seed`, and says so in words in an attribute
        `random_inputs`.
        """

    def training_collator(self, processor: Any, data: Data, seed: int, classes: int) -> Collator:
        """Return the same for what is trained on, with the recipe's augmentation if it asks for any.

        `classes` is how many the model's head has. Raises RecipeError where the task has none.
        """
        if data.augment is not None:
            raise RecipeError(f"data.augment: changes images, and {self.name} has none; leave it out.")
        return self.collator(processor, data, seed)

    @abstractmethod
    def guesses(self, labels: np.ndarray, config: Any) -> Iterable[np.ndarray]:
        """Return the predictions, as the metrics compare them, of what looks at no example."""

    @abstractmethod
    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Turn what `reduction` keeps of the logits into what the metrics compare with labels."""

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        """Return what two models' predictions may agree on, one for each of `counted`."""
        return predictions

    @abstractmethod
    def shapes(self, processor: Any) -> list[Shape]:
        """Return the workloads the benchmark times when the recipe names none."""

    def texts(self, dataset: Dataset) -> Iterable[str]:
        """Return the texts of a split with canonical columns; none when the task reads no text."""
        return ()

    def picture(self, example: Mapping[str, Any]) -> np.ndarray | None:
        """Return an encoded example as people see it, (height, width, 3) of uint8; None where it is no image."""
        return None

    def fit_config_(self, config: Any, processor: Any, given: Mapping[str, Any]) -> None:  # noqa: B027 - by default nothing
        """Set what the config of a model from scratch has to know of its processor, but nothing that is `given`."""

    def fit_model_(self, model: Any, encoded: Dataset, key: str, *, trains: bool) -> None:  # noqa: B027 - by default nothing
        """Fit a model that `trains` to the size of its encoded inputs; RecipeError naming `key` when it cannot be."""

    def fit_padding_(self, model: Any, encoded: Dataset, processor: Any, key: str, *, trains: bool) -> list[str]:
        """Let a model that `trains` know the token that fills up batches; RecipeError naming `key` when it cannot.

        Returns in words what was changed.
        """
        return []

    def unknown_share(self, encoded: Dataset, processor: Any) -> float | None:
        """Return the share of the encoded inputs that the processor does not know; None where it knows all there is."""
        return None

    def check_encoded(self, config: Any, *splits: Dataset) -> None:  # noqa: B027 - by default nothing
        """Raise RecipeError when the model cannot take what the processor made of the data."""

    @property
    def default_metric(self) -> str:
        """Name of the metric a recipe that names none is measured with."""
        return next(iter(self.metrics))

    def metric(self, name: str) -> Metric:
        """Return the metric called `name`, or the local `evaluate` script at that path; RecipeError when neither is."""
        if name in self.metrics:
            return self.metrics[name]
        if Path(name).suffix == ".py" or Path(name).is_dir():
            return _script_metric(name)
        raise RecipeError(f"evaluate.metric: {self.name} has no metric {name!r}.{nearest(name, self.metrics)}")

    def compute_metrics(self, name: str) -> Callable[[Any], dict[str, float]]:
        """Return the Trainer's `compute_metrics` for one metric; it reports under the metric's name."""
        score, key = self.metric(name), metric_key(name)

        def compute(output: Any) -> dict[str, float]:
            logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
            return {key: float(score(self.predictions(np.asarray(logits)), output.label_ids))}

        return compute

    def reduce_logits(self) -> Callable[[Any, Any], torch.Tensor] | None:
        """Return the Trainer's `preprocess_logits_for_metrics`, or None where the logits are kept as they are."""
        if self.reduction == "logits":
            return None
        reduce = REDUCTIONS[self.reduction]

        def keep(logits: Any, labels: torch.Tensor) -> torch.Tensor:
            logits = logits[0] if isinstance(logits, tuple) else logits
            kept = reduce(logits.float().cpu().numpy(), {"labels": labels.cpu().numpy()})
            return torch.from_numpy(kept).to(labels.device)

        return keep


def stored(collate: Collator) -> Callable[[list[Any]], Mapping[str, Any]]:
    """Return what makes batches to be kept in files: the collator's own way, where it knows one of fewer bytes."""
    return getattr(collate, "stored", collate)


def metric_key(name: str) -> str:
    """Return the name a metric is reported under: itself, or the stem of a script's path."""
    return Path(name).stem


def register_task(cls: type[Task]) -> type[Task]:
    """Add a task to the table; raises ValueError when its name is taken."""
    if cls.name in _TASKS:
        raise ValueError(f"task {cls.name!r} is already registered")
    _TASKS[cls.name] = cls()
    return cls


def tasks() -> Mapping[str, Task]:
    """Return every task by name."""
    return dict(sorted(_TASKS.items()))


def get_task(name: str) -> Task:
    """Return the task called `name`, or by one of the synonyms optimum knows for it, such as 'sequence-classification'.

    RecipeError names the nearest when there is none.
    """
    found = _TASKS.get(name) or _TASKS.get(_synonym(name))
    if found is None:
        raise RecipeError(f"task: no task is called {name!r}.{nearest(name, _TASKS)}")
    return found


def _synonym(name: str) -> str:
    """Return what optimum calls the task `name`: itself where it knows no other word for it."""
    from optimum.exporters.tasks import TasksManager  # takes seconds to import, and only for a name that is not ours

    return str(TasksManager.map_from_synonym(name))


def auto_class_for(architecture: str) -> str | None:
    """Return the Auto class of the task that the model class called `architecture` is for, if any task is."""
    for task in tasks().values():
        if architecture in model_class_names(task.auto_class):
            return task.auto_class
    return None


def load_pretrained(loader: Any, source: str, what: str, revision: str | None) -> Any:
    """Call ``loader.from_pretrained``; RecipeError says which key to set when `source` holds no such thing."""
    try:
        require_folder(source)
        return from_pretrained(loader, source, revision=revision)
    except RemoteCodeError:
        raise
    except Exception as error:
        if not is_unreadable(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = (
            f"no {what} can be loaded from {source!r} ({first}) Set 'processor' to a Hub id or folder that has one."
        )
        raise RecipeError(message) from error


def is_unreadable(error: Exception) -> bool:
    """Say whether an error is that there is no tokenizer or image processor, or a damaged one."""
    return isinstance(error, _UNREADABLE) or type(error) is Exception  # which is what `tokenizers` raises


def _script_metric(path: str) -> Metric:
    import evaluate  # slow to import, and only scripts need it

    place = Path(path)
    script = place if place.suffix == ".py" else place / f"{place.resolve().name}.py"
    if not script.is_file():  # `evaluate` would fetch one of that name from the Hub, and run it
        raise RecipeError(f"evaluate.metric: cannot load the script {path}: there is no file {script}")
    try:
        module = evaluate.load(str(script))
    except (OSError, ImportError, ValueError) as error:
        raise RecipeError(f"evaluate.metric: cannot load the script {path}: {error}") from error

    def score(predictions: Any, labels: Any) -> float:
        found = module.compute(predictions=predictions, references=labels) or {}
        if not found:
            raise RecipeError(f"evaluate.metric: {path} computed nothing")
        return float(next(iter(found.values())))

    return Metric(score, higher_is_better=bool(getattr(module, "higher_is_better", True)))
