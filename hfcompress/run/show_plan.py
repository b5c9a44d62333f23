"""A plan as a table for the terminal."""

from __future__ import annotations

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from ..recipe.plan import Plan, PlannedMethod, PlannedStage, PlannedStudent

_UNMEASURED = (
    "Nothing was measured: `hfcompress run` measures the original first, and ends there if it is no better than a "
    "guess that looks at no example."
)


def plan_table(plan: Plan) -> Group:
    """Return the stages with their methods, targets, and what each would leave."""
    title = escape(f"{plan.model} · {plan.task}")
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False)
    for name in ("stage", "steps", "methods and what they act on"):
        table.add_column(name)
    for name in ("parameters", "bytes"):
        table.add_column(name, justify="right")
    table.add_row("as it is", "", "", f"{plan.parameters:,}", _mb(plan.weight_bytes))
    if plan.student is not None:
        origin = [
            *plan.student.origin,
            "loads with transformers alone" if plan.student.stock else "loads with hfcompress",
        ]
        left = _left(plan.student, plan.weight_bytes)
        table.add_row("student", "", escape("\n".join(origin)), *left)
    for stage in plan.stages:
        methods = "\n".join(_method(m) for m in stage.methods)
        steps = "one-shot" if stage.steps is None else f"{stage.steps:,}"
        table.add_row(escape(stage.title), steps, escape(methods), *_left(stage, plan.weight_bytes))
    unknown = any(stage.parameters is None for stage in plan.stages)
    note = " Of a model this large only the shapes were looked at." if unknown else ""
    more = f" and {plan.unlabelled_examples:,} without labels" if plan.unlabelled_examples else ""
    data = f"{plan.train_examples:,} examples{more} to train on, {plan.evaluate_examples:,} to measure on"
    notes = map(escape, plan.notes)
    ahead = "Nothing was trained; which parts go is learned, how many is as shown." + note
    return Group(table, "", data, *notes, ahead, *([_UNMEASURED] if plan.refuses_trivial else []))


def _left(stage: PlannedStage | PlannedStudent, before: int) -> tuple[str, str]:
    if stage.parameters is None or stage.weight_bytes is None:
        return "decided by the run", ""
    return f"{stage.parameters:,}", f"{_mb(stage.weight_bytes)}\n{before / stage.weight_bytes:.2f}× smaller"


def _method(method: PlannedMethod) -> str:
    if not method.targets:
        return method.name
    shown = ", ".join(method.targets[:2]) + (" …" if len(method.targets) > 2 else "")
    left = f"\n  {method.left}" if method.left else ""
    return f"{method.name}: {len(method.targets)} ({shown}){left}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
