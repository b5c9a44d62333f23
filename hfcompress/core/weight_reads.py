"""Layers whose weight a model reads itself instead of calling them: found in the source of its classes.

Mamba multiplies by `self.dt_proj.weight`, DETR takes `self.query_position_embeddings.weight` as its queries. Another
layer in such a place would never be called, or would have no matrix to give.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

WEIGHT, EVERY = "weight", "*"
_FACTS = frozenset(  # what may be asked of a weight without reading its values; a packed one has another shape
    {"dtype", "device", "is_meta", "is_floating_point", "requires_grad", "requires_grad_"}
)
_COMPARES: dict[type[ast.cmpop], Any] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}
_UNKNOWN = "unknown"
_SETUP = ("__init__", "_init", "init_", "reset", "_reset", "initialize", "tie_", "_tie", "load_", "resize", "_resize")


def read_directly(model: nn.Module) -> set[str]:
    """Return the paths of the modules inside `model` whose weight the code of another module reads.

    What runs only while a model is set up or trains does not count: the way into fused kernels, beside which the layer
    is called. Nor does what this config switches off.
    """
    found: set[str] = set()
    for path, module in model.named_modules():
        for read in reads_of(type(module)):  # type: ignore[arg-type]
            if read.names and all(_value(g.test, module) in (g.wanted, None) for g in read.guards):
                found |= {f"{path}.{inside}".lstrip(".") for inside in _inside(module, read.names)}
    return found


@dataclass(frozen=True)
class Guard:
    """A question the code asks before a read, and the answer that leads there."""

    test: ast.expr
    wanted: bool


@dataclass(frozen=True)
class Read:
    """A place in the code of a class that reads a weight.

    names: the attributes that lead to its module, none for itself; `*` stands for every entry of a list.
    """

    names: tuple[str, ...]
    guards: tuple[Guard, ...]


@functools.cache
def reads_of(cls: type) -> tuple[Read, ...]:
    """Return where the code of a class reads weights, its own and those of modules in it."""
    own = (base for base in cls.__mro__ if base is not nn.Module and issubclass(base, nn.Module))
    return tuple(read for base in own for read in _reads_in(base))  # type: ignore[arg-type]


def computes_through_base(cls: type) -> bool:
    """Say whether what a class adds to the layer of torch that it extends leaves reading the weight to that layer.

    False where the source is not there to tell.
    """
    own = [base for base in cls.__mro__ if issubclass(base, nn.Module) and not base.__module__.startswith("torch.nn.")]
    return all(_tree(b) is not None and all(r.names for r in _reads_in(b)) and not _sets_weight(b) for b in own)  # type: ignore[arg-type]


@functools.cache
def _reads_in(cls: type) -> tuple[Read, ...]:
    found: list[Read] = []
    for function in _functions(cls):
        parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
        aliases = dict(_aliases(function))
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and _is_read(node, parents.get(node)):
                names = _names(node.value, aliases)
                if names is not None:
                    found.append(Read(names, tuple(_guards(node, parents))))
    return tuple(found)


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


def _is_read(node: ast.Attribute, parent: ast.AST | None) -> bool:
    """Say whether an attribute is a weight of which the values are read."""
    if node.attr != WEIGHT or not isinstance(node.ctx, ast.Load):
        return False
    if isinstance(parent, ast.Attribute) and parent.attr in _FACTS:
        return False
    asks = isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id == "isinstance"
    return not asks


def _guards(node: ast.AST, parents: Mapping[ast.AST, ast.AST]) -> Iterator[Guard]:
    """Yield the questions that stand before a node."""
    inside = node
    while (parent := parents.get(inside)) is not None:
        if isinstance(parent, ast.If) and inside is not parent.test:
            yield Guard(parent.test, inside in parent.body)
        elif isinstance(parent, ast.IfExp) and inside is not parent.test:
            yield Guard(parent.test, inside is parent.body)
        inside = parent


def _value(test: ast.expr, module: nn.Module) -> bool | None:
    """Return what a question about the module's own settings comes to; None where it asks for anything else."""
    if isinstance(test, ast.BoolOp):
        values = [_value(part, module) for part in test.values]
        decides = isinstance(test.op, ast.Or)
        return decides if decides in values else None if None in values else not decides
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        value = _value(test.operand, module)
        return None if value is None else not value
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) in _COMPARES:
        left, right = (_setting(side, module) for side in (test.left, test.comparators[0]))
        return None if _UNKNOWN in (left, right) else bool(_COMPARES[type(test.ops[0])](left, right))
    found = _setting(test, module)
    return None if found is _UNKNOWN else bool(found)


def _setting(node: ast.expr, module: nn.Module) -> Any:
    """Return a constant, or a number or flag that the module or its config holds; `training` is always false."""
    if isinstance(node, ast.Constant):
        return node.value
    names = _names(node, {})
    if not names or EVERY in names:
        return _UNKNOWN
    if names == ("training",):
        return False
    found: Any = module
    for name in names:
        found = getattr(found, name, _UNKNOWN)
    return found if isinstance(found, bool | int | float) else _UNKNOWN


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
