"""A model and its tokenizer without some of their tokens: rows of embeddings and output layer, ids in the config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from ..core.errors import TargetError
from ..core.foreign_internals import set_backend_
from ..core.position_tables import position_table
from ..ops.tokens import Tokens
from .parametrizations import detach
from .tables import input_embeddings

_ID_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids")


def knows_no_word(tokenizer: Any) -> bool:
    """Say whether it is the tokenizer of special tokens alone that transformers makes up where a folder has none."""
    if not hasattr(tokenizer, "get_vocab"):
        return False
    special = set(tokenizer.all_special_tokens)
    return not any(token not in special and any(map(str.isalnum, token)) for token in tokenizer.get_vocab())


def tokens_of(tokenizer: Any) -> Tokens:
    """Return the tokens of a fast tokenizer of transformers; TargetError for any other processor."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TargetError(
            f"a {type(tokenizer).__name__} is not a fast tokenizer, which keeps its tokens in one JSON file"
        )
    return Tokens(json.loads(backend.to_str()))


def keep_tokens_(model: nn.Module, tokenizer: Any, keep: set[str]) -> list[int]:
    """Keep only the tokens `keep`, in the model and in its fast tokenizer, and return their old ids in new order."""
    state, old = tokens_of(tokenizer).only(keep)
    keep_rows_(model, old)
    set_backend_(tokenizer, Tokenizer.from_str(json.dumps(state)))
    return old


def follow_tokenizer_(model: nn.Module, before: Any, after: Any) -> bool:
    """Let a model that reads the ids of `before` read those of `after`, which has a part of its tokens; say if it must.

    Its answers to texts that both tokenize alike do not change.
    """
    if not hasattr(before, "get_vocab") or before.get_vocab() == after.get_vocab():
        return False
    old = before.get_vocab()
    keep_rows_(model, [old[token] for token, _ in sorted(after.get_vocab().items(), key=lambda item: item[1])])
    return True


def token_layers(model: nn.Module) -> list[str]:
    """Return the paths of the layers with one row per token: input embeddings, and the output layer if there is one.

    Raises TargetError when there are none, when they are packed, or when another layer seems to be one as well.
    """
    table = input_embeddings(model)
    if table is None:
        raise TargetError(f"this {type(model).__name__} has no token embeddings")
    if not isinstance(table, nn.Embedding):
        raise TargetError(
            f"the token embeddings are a {type(table).__name__}: cut the tokens before what changes its kind"
        )
    output = model.get_output_embeddings()  # type: ignore[operator]
    weights = {id(layer.weight) for layer in (table, output) if layer is not None}
    size, paths = table.num_embeddings, []
    for path, module in model.named_modules(remove_duplicate=False):
        if id(getattr(module, "weight", None)) in weights:
            paths.append(path)
        elif isinstance(module, nn.Linear) and module.out_features == size:
            raise TargetError(f"{path} seems to have one row per token as well, and it is not known as an output layer")
    return paths


@torch.no_grad()
def keep_rows_(model: nn.Module, ids: Sequence[int]) -> None:
    """Keep the rows `ids`, in this order, of everything with one row per token, ties included; renumber the config."""
    _unwrap_(model)
    paths = token_layers(model)
    size = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    if max(ids) >= size:
        raise TargetError(
            f"the tokenizer has a token with id {max(ids)}, the model {size} rows: they do not belong together"
        )
    new = {was: now for now, was in enumerate(ids)}
    _refuse_other_padding(model, new)
    layers = [model.get_submodule(path) for path in paths]
    heads = [model.get_submodule(path.rpartition(".")[0]) for path in paths]  # BERT's has a bias that may be tied
    replaced = _cut([*layers, *heads], ids, size)
    for module in model.modules():
        _replace_(module, replaced, ids, size)
        _renumber_module_(module, layers, new, size)
    for config in {id(c): c for m in model.modules() for c in _configs(m)}.values():
        _renumber_config_(config, new, size)


def _cut(modules: Sequence[nn.Module], ids: Sequence[int], size: int) -> dict[int, nn.Parameter]:
    """Return new parameters for those of `modules` with one row per token, by the identity of the old."""
    found = {id(old): old for module in modules for old in module.parameters(recurse=False) if old.shape[0] == size}
    return {key: nn.Parameter(old[list(ids)].clone(), requires_grad=old.requires_grad) for key, old in found.items()}


def _unwrap_(model: nn.Module) -> None:
    """Take off what other methods of the stage have put on the token layers, as replacing the layers would."""
    wanted = (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]
    for path, module in list(model.named_modules()):
        if any(module is layer for layer in wanted):
            detach(model, path, nn.Module)


def _replace_(module: nn.Module, replaced: Mapping[int, nn.Parameter], ids: Sequence[int], size: int) -> None:
    for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
        if id(old) in replaced:
            setattr(module, name, replaced[id(old)])
    bias = getattr(module, "final_logits_bias", None)  # BART's kin keep it in a buffer (1, tokens)
    if isinstance(bias, torch.Tensor) and bias.shape[-1] == size:
        module.final_logits_bias = bias[..., list(ids)].clone()


def _renumber_module_(module: nn.Module, layers: list[nn.Module], new: Mapping[int, int], size: int) -> None:
    """Set the plain attributes that repeat the number of tokens or the padding id."""
    own = vars(module)
    if any(module is layer for layer in layers):
        for name in ("num_embeddings", "out_features"):
            if name in own:
                setattr(module, name, len(new))
    if own.get("vocab_size") == size:
        module.vocab_size = len(new)  # type: ignore[assignment]
    if isinstance(own.get("padding_idx"), int):
        module.padding_idx = new.get(own["padding_idx"], own["padding_idx"])


def _configs(module: nn.Module) -> list[Any]:
    found = [getattr(module, name, None) for name in ("config", "generation_config")]
    text = getattr(found[0], "get_text_config", None)
    return [c for c in (*found, text() if text else None) if c is not None]


def _renumber_config_(config: Any, new: Mapping[int, int], size: int) -> None:
    if getattr(config, "vocab_size", None) == size:
        config.vocab_size = len(new)
    for key, value in config.to_dict().items():
        if key.endswith(("_token_id", "_token_ids")) or key in _ID_LISTS:
            setattr(config, key, _renumbered(value, new))


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    """Return ids, however nested, with new numbers; ids that are gone are left out of lists."""
    if isinstance(value, list | tuple):
        return [_renumbered(v, new) for v in value if not isinstance(v, int) or v in new]
    return new.get(value, value) if isinstance(value, int) else value


def _refuse_other_padding(model: nn.Module, new: Mapping[int, int]) -> None:
    table, pad = position_table(model), int(getattr(model.config, "pad_token_id", None) or 0)
    if table is not None and table.after_padding and new.get(pad, pad) != pad:
        raise TargetError(
            f"position rows count from the padding id {pad}, which may not change: keep the tokens before it"
        )
