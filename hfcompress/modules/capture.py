"""What goes on inside a model's forward pass: queries, keys and values, and attention as maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..core.errors import LifecycleError
from ..core.families import Attention, width_out
from ..core.foreign_internals import attention_of

QUERY, KEY, VALUE = KINDS = ("query", "key", "value")


class Capture:
    """Keeps what the query, key and value projections gave in the last forward pass, layer by layer.

    always: in evaluation mode too; else only while the model trains. `remove` takes the hooks off.
    """

    def __init__(self, model: nn.Module, attentions: Sequence[Attention], *, always: bool) -> None:
        self._always, self._on = always, always
        self._calls: dict[str, list[tuple[Any, Tensor]]] = {kind: [] for kind in KINDS}
        self._hooks = [model.register_forward_pre_hook(self._begin)]
        for attention in attentions:
            paths = {attention.query: KINDS} if attention.fused else dict(zip(_paths(attention), _SINGLE, strict=True))
            for path, kinds in paths.items():
                self._hooks.append(model.get_submodule(path).register_forward_hook(self._keep(kinds)))

    def take(self) -> list[dict[str, Tensor]]:
        """Return the vectors (batch, length, width) by kind, of every layer in order, and forget them.

        LifecycleError when there are none: the projections were replaced, or the model has not run.
        """
        values = self._calls[VALUE]
        # Relative positions may go through the same projections (DeBERTa): attention reads what the values are read of.
        found = {
            kind: [output for read, output in calls if any(read is source for source, _ in values)]
            for kind, calls in self._calls.items()
        }
        self._forget()
        if not values or {len(outputs) for outputs in found.values()} != {len(values)}:
            raise LifecycleError("queries, keys and values of this model cannot be read: its projections gave none")
        return [{kind: found[kind][i] for kind in KINDS} for i in range(len(values))]

    def remove(self) -> None:
        """Take the hooks off and forget what they kept."""
        for hook in self._hooks:
            hook.remove()
        self._forget()

    def _begin(self, model: nn.Module, _: Any) -> None:
        self._forget()
        self._on = self._always or model.training

    def _forget(self) -> None:
        self._calls = {kind: [] for kind in KINDS}

    def _keep(self, kinds: Sequence[str]) -> Any:
        def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self._on:
                for kind, part in zip(kinds, output.chunk(len(kinds), -1), strict=True):
                    self._calls[kind].append((args[0], part))

        return after


class AttentionMaps:
    """Lets a model compute attention in the one way that can return its maps, while it trains (or `always`).

    In evaluation mode the model computes as it did; `remove` takes the hook off and leaves it so.
    """

    IMPLEMENTATION = "eager"

    def __init__(self, model: Any, *, always: bool) -> None:
        self._model, self._always = model, always
        self._own = attention_of(model)
        self._hook = model.register_forward_pre_hook(lambda *_: self._switch(self._always or model.training))

    def remove(self) -> None:
        """Give the model its own implementation back."""
        self._hook.remove()
        self._switch(False)

    def _switch(self, on: bool) -> None:
        wanted = self.IMPLEMENTATION if on else self._own
        if self._own is not None and attention_of(self._model) != wanted:
            self._model.set_attn_implementation(wanted)


def vector_widths(model: nn.Module, attention: Attention) -> dict[str, int]:
    """Return the widths of query, key and value."""
    if attention.fused:
        return dict.fromkeys(KINDS, width_out(model.get_submodule(attention.query)) // len(KINDS))
    return {kind: width_out(model.get_submodule(path)) for kind, path in zip(KINDS, _paths(attention), strict=True)}


_SINGLE = tuple((kind,) for kind in KINDS)


def _paths(attention: Attention) -> tuple[str, str, str]:
    return attention.query, attention.key, attention.value
