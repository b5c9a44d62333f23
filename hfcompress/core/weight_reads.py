"""Layers whose weight a model reads itself instead of calling them: found in the source of its classes.

Mamba multiplies by `self.dt_proj.weight`, DETR takes `self.query_position_embeddings.weight` as its queries. Another
layer in such a place would never be called, or would have no matrix to give.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn

WEIGHT, EVERY = "weight", "*"
_FACTS = frozenset(
    "dtype device shape ndim size dim numel is_meta is_floating_point requires_grad requires_grad_ element_size "
    "itemsize data_ptr".split()  # noqa: SIM905
)  # what may be asked of a weight without reading its values
_SETUP = ("__init__", "_init", "init_", "reset", "_reset", "initialize", "tie_", "_tie", "load_", "resize", "_resize")


def read_directly(model: nn.Module) -> set[str]:
    """Return the paths of the modules inside `model` whose weight the code of another module reads."""
    found: set[str] = set()
    for path, module in model.named_modules():
        for names in reads_of(type(module)):
            found |= {f"{path}.{inside}".lstrip(".") for inside in _inside(module, names)}
    return found


@functools.cache
def reads_of(cls: type) -> frozenset[tuple[str, ...]]:
    """Return the names that lead from a module of this class to those whose weight its code reads; () is itself.

    What runs only while a model is set up does not count, nor what stands behind a question for `self.training`: that
    is the way into fused kernels, beside which the layer is called. `*` in a name stands for every entry of a list.
    """
    found: set[tuple[str, ...]] = set()
    for base in cls.__mro__:
        if base in (nn.Module, object) or not issubclass(base, nn.Module):
            continue
        found |= _reads_in(base)
    return frozenset(found)


def computes_through_base(cls: type) -> bool:
    """Say whether what a class adds to the layer of torch that it extends leaves reading the weight to that layer.

    False where the source is not there to tell.
    """
    own = [base for base in cls.__mro__ if issubclass(base, nn.Module) and not base.__module__.startswith("torch.nn.")]
    return all(_tree(base) is not None and () not in _reads_in(base) and not _sets_weight(base) for base in own)


@functools.cache
def _reads_in(cls: type) -> frozenset[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for function in _functions(cls):
        parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
        aliases = dict(_aliases(function))
        for node in ast.walk(function):
            if _is_read(node, parents) and (names := _names(node.value, aliases)) is not None:  # type: ignore[attr-defined]
                found.add(names)
    return frozenset(found)


@functools.cache
def _sets_weight(cls: type) -> bool:
    nodes = (node for function in _functions(cls) for node in ast.walk(function))
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == WEIGHT
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        for node in nodes
    )


@functools.cache
def _tree(cls: type) -> ast.ClassDef | None:
    """Return the source of a class; None where there is none."""
    try:
        found = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    return found if isinstance(found, ast.ClassDef) else None


def _functions(cls: type) -> Iterator[ast.FunctionDef]:
    """Yield the methods of a class that run when the model does."""
    tree = _tree(cls)
    for node in () if tree is None else tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith(_SETUP):
            yield node


def _is_read(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Say whether a node reads the values of a weight, in whatever mode the model is."""
    if not (isinstance(node, ast.Attribute) and node.attr == WEIGHT and isinstance(node.ctx, ast.Load)):
        return False
    parent = parents.get(node)
    if isinstance(parent, ast.Attribute) and parent.attr in _FACTS:
        return False
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id in ("isinstance", "id"):
        return False
    return not _asks_for_training(node, parents)


def _asks_for_training(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    inside = node
    while (parent := parents.get(inside)) is not None:
        if isinstance(parent, ast.If) and inside in parent.body and ast.unparse(parent.test).startswith("self.training"):
            return True
        inside = parent
    return False


def _aliases(function: ast.FunctionDef) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the local names of a function that stand for a module of `self`, with the names that lead there."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            names = _names(node.value, {})
            if names:
                yield node.targets[0].id, names
        elif isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            names = _names(node.iter, {})
            if names:
                yield node.target.id, (*names, EVERY)


def _names(node: ast.AST, aliases: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the attributes that lead from `self` to a node, None where it does not begin there."""
    names: list[str] = []
    while isinstance(node, ast.Attribute | ast.Subscript):
        names.append(node.attr if isinstance(node, ast.Attribute) else EVERY)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    first = () if node.id == "self" else aliases.get(node.id)
    return None if first is None else (*first, *reversed(names))


def _inside(module: nn.Module, names: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths inside `module` that `names` lead to."""
    if not names:
        return
    first, *rest = names
    for name, child in module.named_children():
        if first in (name, EVERY):
            if not rest:
                yield name
            yield from (f"{name}.{path}" for path in _inside(child, tuple(rest)))
