"""The registered methods as tables for the terminal."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from .. import methods as _builtin  # noqa: F401 - importing it fills the registry
from ..core import registry


def methods_table() -> Table:
    """Return every method with its category and what it does."""
    table = Table(show_edge=False)
    for name in ("method", "category", "what it does", "needs"):
        table.add_column(name, no_wrap=name == "method")
    for name, method in registry.list_methods().items():
        info = method.info
        needs = [n for n in ("training", "teacher", "calibration") if getattr(info.needs, n)]
        table.add_row(name, str(info.category), info.summary, ", ".join(needs))
    return table


def methods_markdown() -> str:
    """Return the README's table of methods."""
    rows = [
        f"| `{name}` | {method.info.category} | {method.info.summary} |"
        for name, method in sorted(registry.list_methods().items())
    ]
    return "\n".join(["| method | category | what it does |", "| --- | --- | --- |", *rows])


def method_table(name: str) -> Group:
    """Return the settings of one method; RecipeError names the nearest when there is none."""
    method = registry.get(name, "hfcompress methods")
    table = Table(show_edge=False)
    for column in ("setting", "default", "meaning"):
        table.add_column(column)
    for key, field in method.Config.model_fields.items():
        default = "required" if field.is_required() else _plain(field.get_default(call_default_factory=True))
        table.add_row(key, escape(default), escape(field.description or ""))
    return Group(f"[bold]{method.info.title}[/]: {method.info.summary}", *method.info.papers, "", table)


def _plain(value: Any) -> str:
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    return json.dumps(value)
