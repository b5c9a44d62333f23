"""Vocabulary pruning: the tokens a corpus does not use leave the model and its tokenizer together."""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import nn

from ..core.config import StrictModel
from ..core.errors import LifecycleError, TargetError
from ..core.method import Category, Context, Method, MethodInfo, Needs, Phase
from ..core.pretrained import from_pretrained
from ..core.registry import register
from ..modules.tokens import keep_tokens_, token_layers, tokens_of
from ..ops.tokens import Tokens

_BATCH = 1000


class VocabularyConfig(StrictModel):
    """Settings of vocabulary pruning."""

    corpus: str = Field(
        "train",
        min_length=1,
        description="Whose tokens are kept. train: what the stage is given, in a recipe the whole training split; "
        "otherwise the path of a text file, one text a line.",
    )
    min_count: int = Field(1, ge=1, description="Keep tokens that occur at least this often in the corpus.")
    keep: int | float | None = Field(
        None,
        description="Keep this many tokens, or below 1 this share of all: what other text falls back on in any case, "
        "then the corpus's, frequent ones first, then the tokenizer's own in their order. By default the corpus's.",
    )
    extra: list[str] = Field(
        default_factory=list, description="Words whose tokens are kept even if the corpus has none."
    )
    characters: Literal["ascii", "all"] = Field(
        "ascii",
        description="Single characters kept for text with other words. ascii: those of ASCII and of the corpus; all: "
        "every one the tokenizer has. Where tokens spell bytes, all 256 are kept.",
    )

    @field_validator("keep")
    @classmethod
    def _number_or_share(cls, value: float | None) -> float | None:
        if value is not None and (value <= 0 or (value >= 1 and value != int(value))):
            raise ValueError("give a whole number of tokens, or a share between 0 and 1")
        return value


@register
class Vocabulary(Method[VocabularyConfig]):
    """Keeps the tokens a corpus uses and what other text falls back on; logits of text made of kept tokens stay."""

    info = MethodInfo(
        name="vocabulary",
        title="Vocabulary pruning",
        summary="Tokens the corpus does not use leave embeddings, output layer and tokenizer; other text falls back.",
        category=Category.PRUNING,
        phase=Phase.STRUCTURE,
        papers=("https://arxiv.org/abs/2010.05609", "https://arxiv.org/abs/2203.15996"),
        needs=Needs(processor=True),
        retokenizes=True,
    )
    Config = VocabularyConfig

    def prepare(self, model: nn.Module, ctx: Context) -> list[str]:
        """Count the corpus's tokens and choose which to keep; return the layers with one row per token.

        Raises LifecycleError without tokenizer or corpus, TargetError when every token is needed.
        """
        if getattr(model, "main_input_name", "") == "pixel_values":
            raise TargetError("vocabulary: this model takes images, not tokens")
        if ctx.processor is None:
            raise LifecycleError(
                "vocabulary: the tokenizer shrinks with the model: pass processor=<the model's tokenizer>"
            )
        self._tokenizer, self._before = ctx.processor, tokens_of(ctx.processor)
        layers = token_layers(model)
        self._texts = self._read(ctx)
        self._rows = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        self._counts = self._count(ctx)
        self._keep = self._choose()
        if len(self._keep) >= self._rows:
            raise TargetError(f"vocabulary: all {self._rows} tokens are needed; nothing would be removed")
        return layers

    def finalize(self, model: nn.Module) -> None:
        """Cut rows and tokenizer, and see that saved and loaded again it tokenizes the corpus as before."""
        before = copy.deepcopy(self._tokenizer)
        old = keep_tokens_(model, self._tokenizer, self._keep)
        with tempfile.TemporaryDirectory() as folder:
            self._tokenizer.save_pretrained(folder)
            loaded = from_pretrained(type(self._tokenizer), folder)
        if loaded.get_vocab() != self._tokenizer.get_vocab():
            raise TargetError(f"vocabulary: a {type(loaded).__name__} does not load with fewer tokens as it was saved")
        _compare(self._encode(before), self._encode(loaded), old)

    def report(self, model: nn.Module) -> dict[str, float]:
        """Return the rows before and after, and which share of the tokens that occur in the corpus is still there."""
        ids = self._before.ids
        kept = {ids[token] for token in self._keep}
        covered = sum(n for index, n in self._counts.items() if index in kept) / max(sum(self._counts.values()), 1)
        return {"tokens_before": self._rows, "tokens_after": len(self._keep), "corpus_covered": covered}

    def _read(self, ctx: Context) -> Sequence[str]:
        """Return the corpus as texts; empty when only token ids are known."""
        if self.config.corpus == "train":
            return list(ctx.corpus.texts())
        try:
            return Path(self.config.corpus).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TargetError(f"vocabulary.corpus: cannot read {self.config.corpus} as text: {error}") from error

    def _count(self, ctx: Context) -> Counter[int]:
        """Return how often each token id occurs."""
        rows = self._encode(self._tokenizer) if self._texts else ctx.corpus.token_ids()
        counts = Counter(itertools.chain.from_iterable(rows))
        if not counts:
            raise LifecycleError(
                "vocabulary: there is no corpus: pass texts=<list of texts> or calibration=<batches with input_ids>"
            )
        return counts

    def _encode(self, tokenizer: Any, texts: Iterable[str] | None = None) -> Iterator[list[int]]:
        """Yield the token ids of each text, whole and without special tokens."""
        rest = iter(self._texts if texts is None else texts)
        options = {"add_special_tokens": False, "padding": False, "truncation": False, "verbose": False}
        while batch := list(itertools.islice(rest, _BATCH)):
            yield from tokenizer(batch, **options)["input_ids"]

    def _choose(self) -> set[str]:
        """Return the tokens to keep: what is fixed, then the corpus's, frequent ones first, each with its parts."""
        tokens, names = self._before, {index: token for token, index in self._before.ids.items()}
        used = [
            names[index] for index, n in self._counts.most_common() if n >= self.config.min_count and index in names
        ]
        seen = {character for token in used for character in token}
        everything = self.config.characters == "all"
        keep = tokens.fixed() | tokens.fallback(lambda c: everything or c.isascii() or c in seen)
        extra = self._encode(self._tokenizer, [f"{lead}{word}" for word in self.config.extra for lead in ("", " ")])
        for index in itertools.chain.from_iterable(extra):
            keep |= tokens.parts(names[index])
        keep |= self._on_the_way_to_unknown(tokens)
        limit = self._limit(len(tokens))
        for token in (*used, *(() if self.config.keep is None else self._others(tokens, seen))):
            more = tokens.parts(token) | keep
            if len(more) > limit:
                break
            keep = more
        return keep

    def _others(self, tokens: Tokens, seen: set[str]) -> list[str]:
        """Return what may fill the room the corpus leaves, in order of the ids, by which tokenizers rank frequency.

        Last come tokens in characters that neither the corpus nor ASCII has, and words of WordPiece that no text leads
        to, such as the unused ones BERT keeps in stock: they would take the place of words that occur.
        """
        everything = sorted(tokens.ids, key=lambda token: tokens.ids[token])
        written = [t for t in everything if all(character in seen or character.isascii() for character in t)]
        prefix = tokens.model.get("continuing_subword_prefix") if tokens.kind == "WordPiece" else None
        if prefix is not None:
            reached = zip(written, self._encode(self._tokenizer, written), strict=True)
            written = [token for token, row in reached if token.startswith(prefix) or row == [tokens.ids[token]]]
        return list(dict.fromkeys([*written, *everything]))

    def _limit(self, everything: int) -> float:
        keep = self.config.keep
        if keep is None:
            return float("inf")
        return keep * everything if keep < 1 else keep

    def _on_the_way_to_unknown(self, tokens: Tokens) -> set[str]:
        """Return what was matched in the corpus's unknown words, so that they stay unknown."""
        unknown = tokens.ids.get(tokens.unknown or "")
        if not self._texts or tokens.kind != "WordPiece" or unknown not in self._counts:
            return set()
        backend, found = self._tokenizer.backend_tokenizer, set()
        for text, row in zip(self._texts, self._encode(self._tokenizer), strict=True):
            if unknown in row:
                text = backend.normalizer.normalize_str(text) if backend.normalizer else text
                words = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text, None)]
                for word, _ in words:
                    found |= tokens.passed(word) if backend.model.tokenize(word)[0].id == unknown else set()
        return found


def _compare(before: Iterable[list[int]], after: Iterable[list[int]], old: list[int]) -> None:
    """Raise TargetError when a text whose tokens are all kept is tokenized otherwise than before."""
    kept = set(old)
    for number, (row, now) in enumerate(zip(before, after, strict=True)):
        if kept.issuperset(row) and [old[index] for index in now] != row:
            raise TargetError(
                f"vocabulary: text {number + 1} of the corpus would be tokenized otherwise than before, although all "
                "its tokens are kept: this tokenizer does more than look its tokens up"
            )
