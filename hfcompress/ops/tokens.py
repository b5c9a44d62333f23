"""A tokenizer as plain data (the JSON of `tokenizers`): which tokens reach which, and the same tokenizer with fewer.

Tokens keep their order, so that new ids are ranks of old ids. What is kept tokenizes as before:
WordPiece takes the longest match, which an absent unused token never was; BPE's applied merges are all kept, in order;
Unigram's best path keeps its score and loses only rivals.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..core.errors import TargetError

KINDS = ("WordPiece", "BPE", "Unigram")
_SPACE = "▁"  # stands for a space in SentencePiece's vocabularies


class Tokens:
    """The tokens of one tokenizer, by text."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        """Read the parsed JSON of a `tokenizers.Tokenizer`; TargetError for a kind that cannot be cut."""
        self.state, self.model = state, state["model"]
        self.kind = str(self.model.get("type"))
        if self.kind not in KINDS:
            raise TargetError(f"a {self.kind} tokenizer can't be cut; {', '.join(KINDS)} can")
        if self.kind == "BPE" and (self.model.get("continuing_subword_prefix") or self.model.get("end_of_word_suffix")):
            raise TargetError("a BPE tokenizer that marks the inside or the end of words in its tokens can't be cut")
        vocab = self.model["vocab"]
        self.words: dict[str, int] = vocab if isinstance(vocab, dict) else {w: i for i, (w, _) in enumerate(vocab)}
        self.added: dict[str, int] = {token["content"]: token["id"] for token in state["added_tokens"]}
        self.ids: dict[str, int] = {**self.words, **self.added}
        self.unknown = self._unknown()
        merges = [tuple(merge) for merge in self.model.get("merges", ())]
        self._ranks: dict[tuple[str, ...], int] = {merge: rank for rank, merge in enumerate(merges)}

    def __len__(self) -> int:
        return len(self.ids)

    def fixed(self) -> set[str]:
        """Return what no text decides on: added tokens, the unknown token, and what sets Unigram's penalty for it."""
        fixed = {*self.added, *([self.unknown] if self.unknown in self.ids else [])}
        if self.kind == "Unigram":
            fixed.add(min(self.model["vocab"], key=lambda item: item[1])[0])  # an unknown character costs 10 more
        return fixed

    def fallback(self, wanted: Callable[[str], bool]) -> set[str]:
        """Return the tokens that any text made of the characters `wanted` can fall back on, bytes included."""
        if self.byte_level:
            return {word for word in self.words if len(word) == 1}
        prefix = self.model.get("continuing_subword_prefix") or ""
        single = {w for w in self.words if len(w) == 1 or (len(w) == len(prefix) + 1 and w.startswith(prefix))}
        found = {word for word in single if wanted(word[-1]) or word == _SPACE}
        if self.model.get("byte_fallback"):
            found |= {f"<0x{byte:02X}>" for byte in range(256)} & self.words.keys()
        return found

    def parts(self, token: str) -> set[str]:
        """Return `token` with what has to be there to reach it: in BPE, what its merges pass through."""
        if self.kind != "BPE" or token in self.added:
            return {token}
        pieces, found = [c for c in token if c in self.words], {token}
        found.update(pieces)
        while len(pieces) > 1:
            pairs = list(itertools.pairwise(pieces))
            best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            at = pairs.index(best)
            pieces[at : at + 2] = ["".join(best)]
            found.add(pieces[at])
        return found

    def passed(self, word: str) -> set[str]:
        """Return what WordPiece matches in `word` before it gives up; without it, the rest could match otherwise."""
        if self.kind != "WordPiece":
            return set()
        prefix, found, start = self.model["continuing_subword_prefix"], set(), 0
        while start < len(word):
            lead = prefix if start else ""
            ends = (end for end in range(len(word), start, -1) if lead + word[start:end] in self.words)
            end = next(ends, None)
            if end is None:
                break
            found.add(lead + word[start:end])
            start = end
        return found

    def only(self, keep: Iterable[str]) -> tuple[dict[str, Any], list[int]]:
        """Return the JSON of the tokenizer with the tokens `keep` alone, and their old ids in order of the new ones."""
        old = sorted(self.ids[token] for token in set(keep))
        new = {was: now for now, was in enumerate(old)}
        state = copy.deepcopy({key: value for key, value in self.state.items() if key != "model"})
        state["model"] = self._cut_model(new)
        state["added_tokens"] = [
            {**token, "id": new[token["id"]]} for token in state["added_tokens"] if token["id"] in new
        ]
        for part in _processors(state.get("post_processor")):
            _renumber_(part, new)
        if state.get("padding"):
            state["padding"]["pad_id"] = new[state["padding"]["pad_id"]]
        return state, old

    @property
    def byte_level(self) -> bool:
        """Whether tokens spell bytes, each by one printable character."""
        found = (self.state.get(key) for key in ("pre_tokenizer", "normalizer"))
        return self.kind == "BPE" and any(part.get("type") == "ByteLevel" for whole in found for part in _parts(whole))

    def _unknown(self) -> str | None:
        if self.kind != "Unigram":
            return self.model.get("unk_token")
        index = self.model.get("unk_id")
        return None if index is None else self.model["vocab"][index][0]

    def _cut_model(self, new: Mapping[int, int]) -> dict[str, Any]:
        model = {key: value for key, value in self.model.items() if key not in ("vocab", "merges")}
        words = {word: new[was] for word, was in self.words.items() if was in new}
        if self.kind == "Unigram":
            model["vocab"] = [item for index, item in enumerate(self.model["vocab"]) if index in new]
            model["unk_id"] = None if model.get("unk_id") is None else new[model["unk_id"]]
            return model
        model["vocab"] = words
        if self.kind == "BPE":
            whole = (*self._ranks,)
            model["merges"] = [list(m) for m in whole if {*m, "".join(m)} <= words.keys()]
        return model


def _parts(whole: Any) -> Iterator[dict[str, Any]]:
    """Yield a normalizer or pre-tokenizer, or the ones a sequence of them holds."""
    if whole:
        inner = whole.get("pretokenizers") or whole.get("normalizers") or []
        yield whole
        for part in inner:
            yield from _parts(part)


def _processors(whole: Any) -> Iterator[dict[str, Any]]:
    if whole:
        yield whole
        for part in whole.get("processors") or ():
            yield from _processors(part)


def _renumber_(processor: dict[str, Any], new: Mapping[int, int]) -> None:
    """Give the special tokens that a post-processor adds their new ids."""
    for key in ("sep", "cls"):
        if key in processor:
            processor[key] = [processor[key][0], new[processor[key][1]]]
    special = processor.get("special_tokens")
    for token in special.values() if isinstance(special, dict) else ():
        token["ids"] = [new[was] for was in token["ids"]]
