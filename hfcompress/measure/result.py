"""The record of one run: every number a card may show, and nothing that was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..core.config import StrictModel
from ..core.errors import MeasureError
from ..core.explain import first_fault
from ..core.local_paths import shortened, without_local_paths
from ..recipe.data_report import DataReport
from .unfinished import unfinished

FORMAT = 1
BUSY = 0.05  # of the time in which models were timed: held by others for longer, the times are uncertain
EXACT = 9  # decimals of a difference that mean something: floating point adds more
WORSE = 0.003  # of a metric that is a share: an engine this much below PyTorch runs another model
WORSE_SHARE = 0.01  # the same as a share of a metric of which lower is better


class Workload(StrictModel):
    """What a time was taken on: a batch of one shape, or real examples as they come, one at a time."""

    batch: int
    length: int | None = Field(None, description="Tokens per example; None for images.")
    image_size: int | None = Field(None, description="Pixels per side; None for text, or if each model has its own.")
    examples: int | None = Field(
        None, description="Examples of the evaluation split, each a batch of its own and unpadded; None: a fixed shape."
    )
    kind: Literal["texts", "images"] | None = Field(None, description="What the real examples are.")

    @property
    def workload(self) -> tuple[int | str | None, ...]:
        """What two times have to share to be compared."""
        return self.batch, self.length, self.image_size, self.examples, self.kind

    @property
    def key(self) -> str:
        """Name in records, such as '1x32', '1ximage' or, of real examples one at a time, 'real-1'."""
        if self.examples is not None:
            return f"real-{self.batch}"
        return f"{self.batch}x{self.length or self.image_size or 'image'}"

    @property
    def short(self) -> str:
        """Name in tables and sentences, such as '8×128' or '100 real texts'."""
        return self.key.replace("x", "×", 1) if self.examples is None else f"{self.examples} real {self.kind}"


class LatencyRow(Workload):
    """Time of one forward pass in one engine on one workload."""

    engine: str = Field(description="Name of the engine, such as 'pytorch'; the recipe lists all.")
    threads: int
    rounds: int = Field(description="Interleaved rounds; each gives one median, or one pass over the real examples.")
    p50_ms: float = Field(description="Median of all passes; of real examples, of each one's median over the rounds.")
    p90_ms: float
    p99_ms: float | None = Field(
        None,
        description="None below 100 passes, or real examples: of fewer, the hundredth-slowest is the slowest, which is "
        "chance.",
    )
    passes: int | None = Field(None, description="Timed passes of all rounds; None: an older result did not say.")
    throughput_per_s: float = Field(
        description="Examples per second at the median; of real examples, their number over their total time."
    )
    tokens: tuple[int, int, int] | None = Field(
        None, description="Tokens in the shortest, the middle and the longest of real texts, as the model reads them."
    )

    @property
    def shape(self) -> tuple[int, int]:
        """The shape, without the engine: (batch, tokens or pixels)."""
        return self.batch, self.length or self.image_size or 0

    @property
    def time_ms(self) -> float:
        """The time that speeds are compared by: the median of a shape; of real examples their mean, so their total."""
        return self.p50_ms if self.examples is None else 1000 / self.throughput_per_s


class Quality(StrictModel):
    """The task metric of one model in one engine, on the evaluation split."""

    engine: str
    metric: str = Field(description="Name of the metric, such as 'accuracy'.")
    value: float
    examples: int
    higher_is_better: bool = True
    calibration_error: float | None = Field(
        None, description="Expected calibration error of the likeliest class, 15 bins; None: not a classifier."
    )

    def shortfall(self, reference: Quality) -> float:
        """Return how much worse this is: a difference where higher is better, else a share of `reference`."""
        if self.higher_is_better:
            return reference.value - self.value
        return self.value / reference.value - 1


class Part(StrictModel):
    """One block of a model, its embeddings, or what is neither."""

    name: str = Field(description="'embeddings', 'block 0', …, 'rest'.")
    heads: int | None = Field(None, description="Attention heads that can be removed one by one.")
    units: int | None = Field(None, description="Width of the feed-forward layer.")
    width: int | None = Field(None, description="Channels of the hidden state.")
    tokens: int | None = Field(None, description="Tokens the embeddings know; None for images.")
    numbers: int = Field(description="Numbers the part holds, packed ones counted one by one.")
    nonzeros: int = Field(description="Those of them that are stored: zeros under a mask are not.")
    size_bytes: int = Field(description="Bytes of its tensors, before any entropy coding.")
    bits: float | None = Field(None, description="Mean bits of a number in its matrices; None: it has none of its own.")
    rank: int | None = Field(None, description="Smallest rank of its layers that are split into factors.")
    shares: str | None = Field(None, description="The part whose matrices it uses, if it has none of its own.")


class ModelResult(StrictModel):
    """What was measured of one model."""

    name: str = Field(description="Hub id or folder name, for people.")
    size_bytes: int = Field(description="Sum of the weight files of the checkpoint on disk.")
    files: dict[str, int] = Field(description="Weight files and their bytes.")
    checksums: dict[str, str] = Field(default_factory=dict, description="SHA-256 of the weight files.")
    image_size: int | None = Field(None, description="Pixels per side of the images its processor gives.")
    exports: dict[str, int] = Field(default_factory=dict, description="Exported files and their bytes.")
    parameters: int = Field(description="Numbers the model holds, packed ones counted one by one, shared ones once.")
    nonzeros: int
    flops: dict[str, int] = Field(description="Floating-point operations of one example by shape, such as '1x32'.")
    runs_in: dict[str, str] = Field(
        default_factory=dict, description="By engine, how the weights are stored and what products are computed in."
    )
    layout: list[Part] = Field(default_factory=list, description="Where the weights are, part by part.")
    quality: list[Quality] = Field(default_factory=list)
    latency: list[LatencyRow] = Field(default_factory=list)
    peak_memory_bytes: dict[str, int] = Field(
        default_factory=dict, description="Peak resident memory by engine of a process that holds only this model."
    )
    load_seconds: dict[str, float] = Field(
        default_factory=dict,
        description="By engine, seconds from opening the file to the first output, at the smallest shape, in a process "
        "of its own. Importing the engine's library is not counted, compiling is; the file may be in the system's "
        "cache.",
    )

    energy_j: dict[str, float] = Field(
        default_factory=dict,
        description="By engine, joules of one pass at the smallest shape, by the processor's counter; none: not "
        "measured, `environment` says why.",
    )

    def quality_in(self, engine: str) -> Quality | None:
        """Return the metric as measured in `engine`, if it was."""
        return next((q for q in self.quality if q.engine == engine), None)

    def strays_in(self, engine: str) -> bool:
        """Say whether `engine` answers worse than PyTorch, by more than a table lets pass, or was timed unevaluated."""
        there, pytorch = self.quality_in(engine), self.quality_in("pytorch")
        if there is None:  # where others were evaluated: a result of times alone has no other to prefer
            return bool(self.quality) and any(row.engine == engine for row in self.latency)
        if pytorch is None:
            return False
        return round(there.shortfall(pytorch), EXACT) > (WORSE if there.higher_is_better else WORSE_SHARE)


class McNemar(StrictModel):
    """Exact two-sided McNemar test of whether one of two classifiers is right more often than the other."""

    lost: int = Field(description="Examples that only the baseline gets right.")
    gained: int = Field(description="Examples that only the compressed model gets right.")
    p_value: float


class ClassRow(StrictModel):
    """How often the examples of one class are predicted right, before and after."""

    name: str
    examples: int
    before: int = Field(description="Examples of the class that the baseline gets right.")
    after: int = Field(description="Examples of the class that the compressed model gets right.")

    @property
    def drop(self) -> float:
        """The share of the class's examples by which the compressed model is worse; negative: it is better."""
        return (self.before - self.after) / self.examples


class Difference(StrictModel):
    """Paired difference of the metric, compressed minus baseline, on the same examples."""

    engine: str = Field(description="Engine both models were evaluated in.")
    metric: str
    value: float
    low: float
    high: float
    level: float = Field(0.95, description="Level of the bootstrap interval [low, high].")
    resamples: int
    examples: int
    agreement: float = Field(description="Share of `counted` on which both models predict the same.")
    counted: str = Field("examples", description="What the agreement is a share of, such as 'examples' or 'tokens'.")
    higher_is_better: bool = Field(True, description="Whether a positive value is an improvement.")
    divergence: float | None = Field(
        None, description="Mean KL divergence, in nats, of the compressed model's classes from the baseline's."
    )
    mcnemar: McNemar | None = Field(None, description="Whether the share of right answers differs; classifiers only.")
    classes: list[ClassRow] = Field(default_factory=list, description="What each class paid; classifiers only.")

    @property
    def loss(self) -> float:
        """How much worse the compressed model is, whichever way the metric runs; negative: it is better."""
        return -self.value if self.higher_is_better else self.value


class Speedup(Workload):
    """Ratio of times, baseline over compressed, on one workload: of medians, or of totals over real examples."""

    engine: str = Field(description="Engine of the compressed model.")
    baseline_engine: str
    ratio: float


class StageRecord(StrictModel):
    """What one stage did."""

    name: str
    methods: dict[str, dict[str, Any]] = Field(description="Settings by method, defaults included.")
    train: dict[str, Any] | None = Field(None, description="Training arguments as given; None for a one-shot stage.")
    report: dict[str, dict[str, float]] = Field(default_factory=dict, description="Numbers each method reported.")
    seconds: float
    waiting: float | None = Field(
        None, description="Of the processor time the stage was ready for, the share that other processes held."
    )


class Source(StrictModel):
    """Where a model or data set came from, without any path of this machine."""

    id: str = Field(description="Hub id, or the last part of a local path.")
    hub: bool = Field(False, description="Whether `id` names a repository on the Hub.")
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    base: Source | None = Field(None, description="Of an adapter: the model that it was merged into.")


class Method(StrictModel):
    """A method as the card cites it."""

    name: str
    title: str
    category: str
    papers: list[str] = Field(default_factory=list)


class Requirement(StrictModel):
    """One line of the recipe's `require:` and whether it was met."""

    name: str
    wanted: str
    measured: float
    met: bool


class Result(StrictModel):
    """Everything known about a run; `result.json` is this, and a card is a pure function of it."""

    format: Literal[1] = 1
    title: str
    created: str = Field(description="UTC time, ISO 8601.")
    task: str = Field(description="Hub pipeline tag, such as 'text-classification'.")
    auto_class: str = Field(description="Class whose from_pretrained loads the model.")
    loads_with: Literal["transformers", "hfcompress"] = Field(
        description="'transformers': the checkpoint is a stock one; 'hfcompress': it needs `import hfcompress`."
    )
    dtype: str = Field("float32", description="Type of the float weights as measured; 'auto': as stored.")
    base_model: Source
    dataset: Source
    methods: list[Method]
    stages: list[StageRecord]
    baseline: ModelResult
    compressed: ModelResult
    control: Quality | None = Field(
        None, description="The uncompressed model given the same training (same steps, same teacher), in PyTorch."
    )
    difference: list[Difference] = Field(description="One row per engine both models were evaluated in.")
    speedup: list[Speedup] = Field(default_factory=list)
    waiting: float | None = Field(
        None, description="Of the time in which both were timed, the share that other processes held the processor."
    )
    structure: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="What differs from the base model's shapes, by module path."
    )
    requirements: list[Requirement] = Field(default_factory=list)
    findings: list[str] = Field(default_factory=list, description="Plain words on what saved nothing or got slower.")
    data: DataReport | None = Field(
        None, description="Rows left out, texts cut, and examples that are measured on and trained on too, counted."
    )
    data_notes: list[str] = Field(
        default_factory=list, description="What is to be known of data and labels as the model got them, in words."
    )
    unknown_tokens: float | None = Field(
        None, description="Of the tokens of the data, the share that the tokenizer does not know; None: it knows all."
    )
    trivial: float | None = Field(
        None, description="The metric of the best guess that looks at no example, such as always the same class."
    )
    environment: dict[str, Any]
    seed: int
    recipe: str = Field(description="The recipe's text as given.")
    overrides: list[str] = Field(default_factory=list, description="`--set` values on top of it, paths shortened.")
    recipe_hash: str = Field(description="SHA-256 of the resolved recipe.")
    recipe_cut: bool = Field(
        False, description="Whether paths in `recipe` or `overrides` were cut short, so that the hash is of others."
    )

    @property
    def size_ratio(self) -> float:
        """Bytes of the baseline's weight files over those of the compressed model."""
        return self.baseline.size_bytes / self.compressed.size_bytes

    @property
    def disturbed(self) -> bool:
        """Whether other processes held the processor so long that times and their ratios are uncertain."""
        return self.waiting is not None and self.waiting > BUSY

    def without_local_paths(self) -> Result:
        """Return the same with every absolute path in the recipe and in settings cut to its last part."""
        stages = [
            stage.model_copy(update={"train": shortened(stage.train), "methods": shortened(stage.methods)})
            for stage in self.stages
        ]
        overrides = [without_local_paths(item) for item in self.overrides]
        recipe = without_local_paths(self.recipe)
        cut = self.recipe_cut or recipe != self.recipe or overrides != self.overrides
        shown = {"stages": stages, "overrides": overrides, "recipe": recipe, "recipe_cut": cut}
        return self.model_copy(update=shown)

    def headline(self) -> Difference:
        """Return the difference people read first: PyTorch against PyTorch."""
        return next((d for d in self.difference if d.engine == "pytorch"), self.difference[0])

    def best_speedups(self) -> list[Speedup]:
        """Return each workload's best engine of the compressed model against the baseline in PyTorch, as found.

        One that answers worse than PyTorch, or nobody knows how, is not the best: it counts where no other was timed.
        """
        rows = [s for s in self.speedup if s.baseline_engine == "pytorch"]
        workloads = dict.fromkeys(s.workload for s in rows)
        return [max((s for s in rows if s.workload == one), key=self._standing) for one in workloads]

    def strays(self) -> list[str]:
        """Return the engines that would be the best on some workload, did they answer as PyTorch does."""
        best = {s.workload: s.ratio for s in self.best_speedups()}
        faster = [s for s in self.speedup if s.baseline_engine == "pytorch" and s.ratio > best[s.workload]]
        return list(dict.fromkeys(s.engine for s in faster))

    def _standing(self, row: Speedup) -> tuple[bool, float]:
        return not self.compressed.strays_in(row.engine), row.ratio


def read_result(path: str | Path) -> Result:
    """Read `result.json`, given its path or its folder; MeasureError when it is missing or not one of ours.

    Of a run that did not finish the message says why, and how to go on.
    """
    path = Path(path)
    path = path / "result.json" if path.is_dir() else path
    try:
        return Result.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MeasureError(
            unfinished(path.parent)
            or f"no result at {path}: {error.strerror}. A run writes result.json into its folder."
        ) from error
    except ValueError as error:
        raise MeasureError(
            f"{path} is not a result of this package: {first_fault(error, Result)} Measure again with `hfcompress run "
            "… --resume`, or leave this folder out."
        ) from error
