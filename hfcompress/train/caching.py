"""What a Trainer needs to look its teacher's logits up: examples that know their number, and a cache opened in time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import LifecycleError
from ..core.lifecycle import Lifecycle, State
from ..modules.pixels import enlarges_to
from ..recipe.schema import TeacherCache
from .augmentation import VIEW
from .batches import TrainingBatchesMixin
from .cached_teacher import NUMBER, CachedTeacher, Computing, KeepNumbers, Numbered
from .fingerprints import collator_digest, processor_digest, why_random
from .teacher import Teacher

logger = logging.getLogger(__name__)


class TeacherCacheMixin(TrainingBatchesMixin):
    """Gives training batches the numbers of their examples, and the teacher's logits for these numbers."""

    lifecycle: Lifecycle
    teacher: Teacher | None
    args: Any
    train_dataset: Any
    _signature_columns: Any

    teacher_cache: TeacherCache | None = None  # as asked for
    cached: CachedTeacher | None = None  # as opened
    _decided = False  # whether it was found out if the cache serves

    def _ask_for_cache(self, wanted: bool | TeacherCache) -> None:
        self.teacher_cache = TeacherCache() if wanted is True else wanted or None

    def _forget_cache(self) -> None:
        """Find out anew, for the teacher or the stage are others; LifecycleError when there is no teacher."""
        if self.teacher_cache is not None and self.teacher is None:
            raise LifecycleError("teacher_cache: no method of this stage learns from a teacher; leave it out")
        self.cached, self._decided = None, False

    def open_teacher_cache(self) -> str | None:
        """Let the teacher run on the examples it never saw, and return what to tell of it; None where there is nothing.

        Training does this itself when it begins; called before, it can be shown and interrupted by itself.
        """
        if self.teacher_cache is None or self.teacher is None:
            return None
        if self._decided or self.lifecycle.state is not State.PREPARED:
            return None
        self._decided = True
        reason = self._why_live(self.teacher)
        if reason is None:
            try:
                return self._open(self.teacher, self.teacher_cache)
            except LifecycleError as error:
                reason = str(error)
        return f"teacher_cache is off, the teacher runs on every batch: {reason}"

    def taught(self, batch: Mapping[str, Any], numbers: Any, wants: frozenset[str]) -> Any:
        """Return the teacher's outputs for a batch, looked up by the numbers of its examples where they are kept."""
        if self.teacher is None:
            return None
        if numbers is None or self.cached is None:
            return self.teacher(batch, wants)
        return self.cached(batch, numbers)

    def get_train_dataloader(self) -> Any:
        """Return the Trainer's loader; with a cache, its batches hold the examples' numbers too."""
        if note := self.open_teacher_cache():
            logger.log(logging.WARNING if self.cached is None else logging.INFO, note)
        plain = self.train_dataset, self._train_collator
        if self.cached is not None and self.lifecycle.state is State.PREPARED:
            keeping = KeepNumbers(self.train_collator, len(self.train_dataset))
            self.train_dataset, self._train_collator = Numbered(plain[0]), keeping
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self._train_collator = plain

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # The sampler may read lengths off a column: it gets the data set as it was.
        plain = train_dataset.dataset if isinstance(train_dataset, Numbered) else train_dataset
        return super()._get_train_sampler(plain)  # type: ignore[misc]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        # No inputs of the model, but not to be dropped before they are read.
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, NUMBER, VIEW]))

    def _why_live(self, teacher: Teacher) -> str | None:
        """Return why the teacher has to run on every batch, in words, or None."""
        if wanted := self.lifecycle.ever_wants:  # not only now: the decision holds for the whole stage
            names = " and ".join(sorted(wanted)).replace("_", " ")
            return f"a method learns from its {names}, which are not kept"
        if teacher.reads_labels:
            return "its decoder reads the labels, by which examples are not told apart"
        if teacher.watched:
            return "a method reads what goes on inside it, which is not kept"
        if not (hasattr(self.train_dataset, "__len__") and hasattr(self.train_dataset, "__getitem__")):
            return "the training data is a stream, whose examples have no number"
        if len(self.train_dataset) == 0:
            return "there is no training data"
        if said := getattr(self.train_collator, "random_inputs", None):
            return str(said)
        return why_random(self.train_dataset, self._collate)

    def _open(self, teacher: Teacher, cache: TeacherCache) -> str:
        settings = {
            "processor": processor_digest(self.processing_class),  # type: ignore[attr-defined]
            "collator": collator_digest(self._collate, self._examples([0])[0]),
            "precision": [self.args.bf16, self.args.fp16],
            **({"enlarged": size} if (size := enlarges_to(teacher.model)) else {}),
            **({"forms": self.train_collator.forms} if self._views else {}),
        }
        cached = CachedTeacher(teacher, self.train_dataset, cache.top_k, settings, self._views)
        with self.compute_loss_context_manager():  # type: ignore[attr-defined]
            computed = cached.fill(
                Computing(
                    self._batch_of,
                    size=self.args.train_batch_size,
                    rank=self.args.process_index,
                    ranks=self.args.world_size,
                    wait=self.accelerator.wait_for_everyone,  # type: ignore[attr-defined]
                    quiet=self.args.disable_tqdm or not self.args.should_log,
                )
            )
        self.cached = cached
        many = f" in {self._views} views each" if self._views else ""
        return (
            f"teacher_cache: {len(self.train_dataset):,} examples{many}, of which the teacher ran on {computed:,} now"
        )

    @property
    def _views(self) -> int | None:
        return getattr(self.train_collator, "views", None)

    def _batch_of(self, numbers: Sequence[int]) -> Mapping[str, Any]:
        batch = self._collate(self._examples(numbers))
        return self._prepare_inputs(batch)  # type: ignore[attr-defined]

    def _examples(self, numbers: Sequence[int]) -> list[Any]:
        """Return examples by number, each told which view of it is meant where there are several."""
        places = [divmod(number, len(self.train_dataset)) for number in numbers]
        examples = [self.train_dataset[row] for _, row in places]
        if not self._views:
            return examples
        return [{**example, VIEW: view} for example, (view, _) in zip(examples, places, strict=True)]

    def _collate(self, examples: list[Any]) -> Mapping[str, Any]:
        """Return a batch as the Trainer makes it, without columns that the model does not take."""
        return self._get_collator_with_removed_columns(self.train_collator)(examples)  # type: ignore[attr-defined]
