"""The protocol every compression method follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from .config import StrictModel
from .families import Family, family_of

CALIBRATION_EXAMPLES = 256


class Phase(IntEnum):
    """When, within one stage, a method becomes permanent: low before high, so no method lists its neighbours."""

    COMPANION = 0  # acts only while training, leaves nothing behind
    STRUCTURE = 1
    SPARSITY = 2
    FACTOR = 3
    QUANT = 4
    REST = 5  # how tensors lie in a file, whatever they are by then


class Category(StrEnum):
    """The seven categories of the survey; `hybrid` is what a stage with several of them is."""

    PRUNING = "parameter pruning"
    QUANTIZATION = "parameter quantization"
    COMPACT = "compact networks"
    DISTILLATION = "knowledge distillation"
    LOW_RANK = "low-rank decomposition"
    SHARING = "parameter sharing"
    HYBRID = "hybrid"


@dataclass(frozen=True)
class Needs:
    """What a method cannot do without; a stage that cannot give it is refused before anything runs."""

    training: bool = False
    teacher: bool = False
    calibration: bool = False
    processor: bool = False  # tokenizer or image processor; it then gives other inputs, and those read before are void


@dataclass(frozen=True)
class MethodInfo:
    """What the registry, the command line, the card and the README's table say about a method."""

    name: str
    title: str
    summary: str
    category: Category
    phase: Phase
    papers: tuple[str, ...]
    needs: Needs = field(default_factory=Needs)
    adapts: bool = False  # trains parameters of its own while the model is frozen, which then may be quantized
    alone: bool = False  # what it leaves has other paths: in its stage, only methods that leave nothing may join it
    cuts: bool = False  # puts smaller layers in the place of others when training ends, and what is on those goes
    learns_storage: bool = False  # trains, on the layers themselves, how their weights will be stored
    retokenizes: bool = False  # gives some text other tokens than before
    examples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings by what they act on, where the
    # defaults are not all there is to say about the model types it works on

    @property
    def lasting(self) -> bool:
        """Whether it leaves something in the model, and does not only act while it trains."""
        return self.phase > Phase.COMPANION

    @property
    def in_control(self) -> bool:
        """Whether the dense control trains with it too: it says how a model is trained and compresses nothing."""
        return not self.lasting or self.adapts


@dataclass(frozen=True)
class Corpus:
    """The training data, for methods that fit a model's tables to it; read only when one asks."""

    texts: Callable[[], Iterable[str]] = tuple  # as written
    token_ids: Callable[[], Iterable[Sequence[int]]] = tuple  # as the model is fed them, without padding
    image_size: Callable[[], tuple[int, int] | None] = lambda: None  # height and width in pixels


@dataclass(frozen=True)
class Context:
    """What a method is told of its surroundings: the seed, the teacher, the data, and where things live in this model.

    `processor` (tokenizer or image processor) is the one that will be saved with the model; `finalize` may change it in
    place, as it does the model.
    """

    model: nn.Module
    seed: int = 0
    teacher: nn.Module | None = None
    processor: Any = None
    corpus: Corpus = field(default_factory=Corpus)

    @property
    def family(self) -> Family:
        """Where the model's parts live; FamilyError for a model type that is not described, if a method asks."""
        return family_of(self.model)


C = TypeVar("C", bound=StrictModel)


class Method(Generic[C]):
    """One compression technique; only `prepare` and `finalize` must be written, and nothing calls ``super()``.

    The life cycle (new, prepared, finalized) is kept outside, in one place; a method holds no flags about it.
    All state that training changes lives in the model, as parameters and buffers of torch parametrizations, so that
    a checkpoint holds it.
    """

    info: ClassVar[MethodInfo]
    Config: ClassVar[type[StrictModel]]
    left_out: Mapping[str, str] = MappingProxyType({})  # by path, why `prepare` left out what others like it act on

    def __init__(self, config: C) -> None:
        self.config = config

    @property
    def needs(self) -> Needs:
        """What this method cannot do without, with the settings it has."""
        return self.info.needs

    @property
    def calibration_examples(self) -> int:
        """How many calibration examples to read, where the caller has that many: `examples` of the settings."""
        return getattr(self.config, "examples", CALIBRATION_EXAMPLES)

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Attach what training or calibration needs, reversibly, and return the paths acted on (empty: an error)."""
        raise NotImplementedError

    def observe(self, model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> None:
        """Collect statistics from calibration batches; this phase is at strength zero, the model in evaluation mode.

        A one-shot method may already change weights here, in place, so that a model is never held twice: from then on
        it stands at full strength, and `finalize` only stores what is there more tightly.
        """

    def assume(self, model: nn.Module) -> None:
        """Stand in for `observe` in a plan, which has no data: bring the model to the size it will have."""

    def on_step(self, model: nn.Module, fraction: float) -> None:
        """Set the strength for `fraction` of the stage in [0, 1]; no I/O."""

    def settled(self, fraction: float) -> bool:
        """Say whether the strength no longer rises, so that a checkpoint from here may count as the best one."""
        return True

    @property
    def wants(self) -> frozenset[str]:
        """Names of extra model outputs the loss reads now, such as ``hidden_states``."""
        return frozenset()

    @property
    def ever_wants(self) -> frozenset[str]:
        """Names of extra model outputs the loss reads at any time of the stage; what it reads now unless said."""
        return self.wants

    @property
    def task_weight(self) -> float:
        """Factor on the loss against the labels; 1 leaves it alone."""
        return 1.0

    def extra_loss(self, batch: Mapping[str, Any], student: Any, teacher: Any) -> torch.Tensor | None:
        """Return a scalar per-batch mean to add to the loss; `student` and `teacher` are model outputs."""
        return None

    def log(self) -> dict[str, float]:
        """Return numbers about the training since the last call, for the training's log."""
        return {}

    def param_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return optimizer groups for parameters that need their own settings."""
        return []

    def finalize(self, model: nn.Module) -> None:
        """Make the change permanent with the functions of `modules`, and remove everything `prepare` attached."""
        raise NotImplementedError

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return numbers about what was done, for the log and the card."""
        return {}
