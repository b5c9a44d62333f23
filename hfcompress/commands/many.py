"""Commands that run recipes many times: methods side by side, and a search for the values of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import UNMET, Set, console, escape, quiet_libraries, resumable


def compare(
    suite: Annotated[
        Path,
        typer.Argument(help="Suite file (YAML), or a folder with --report.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the comparison; by default out/ and the suite's name.")
    ] = None,
    set_: Set = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run only the cells of this model or method; repeatable.", metavar="NAME"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all cells anew, also those that are done.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Run nothing: write the report of the folder SUITE from its results.")
    ] = False,
) -> None:
    """Run methods by models by seeds as one job, and show them side by side: a table and a figure per model.

    Done cells are kept: repeat the command to go on where it stopped. A cell that fails is a row that says why.
    """
    from ..publish.suite import write_report

    if report:
        console.print(f"Report {escape(write_report(suite))}", soft_wrap=True)
        return
    quiet_libraries()
    from ..recipe.suite import load_suite
    from ..run.comparing import run_suite
    from ..run.reporter import Reporter

    folder = output or Path("out") / suite.stem
    with resumable(f"Done cells are in {folder}", "repeat the command"):
        path = run_suite(
            load_suite(suite, set_ or ()), folder, only=only or (), fresh=fresh, reporter=Reporter(console)
        )
    console.print(f"\nReport {escape(path)}", soft_wrap=True)


def search(
    path: Annotated[
        Path,
        typer.Argument(help="Search file (YAML), or a folder with --report.", show_default=False, metavar="SEARCH"),
    ],
    output: Annotated[Path | None, typer.Option(help="Folder of the search; by default out/ and its name.")] = None,
    set_: Set = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all; default: as the file says.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Run nothing: write the report of the folder SEARCH from its results.")
    ] = False,
) -> None:
    """Find the values of a recipe that give several sizes of one model, such as `small` and `tiny`.

    Trials are measured on a held-out part of the training split; the best within each size's bounds is then run whole
    and measured on the split that no trial has seen. Trials are kept: repeat the command to go on, also with more of
    them or other sizes. `--set` overrides a value of the recipe. Ends with status 3 where a size was not found, or
    missed its bounds when run whole.
    """
    from ..publish.search import write_report

    if report:
        console.print(f"Report {escape(write_report(path))}", soft_wrap=True)
        return
    quiet_libraries()
    from ..measure.trials import read_search
    from ..recipe.search import load_search
    from ..run.reporter import Reporter
    from ..search.execute import run_search

    folder = output or Path("out") / path.stem
    with resumable(f"Trials are in {folder}", "repeat the command"):
        page = run_search(load_search(path, set_ or (), trials), folder, reporter=Reporter(console))
    console.print(f"\nReport {escape(page)}", soft_wrap=True)
    record, results = read_search(folder)
    met = all(line.met for result in results.values() for line in result.requirements)
    if len(results) < len(record.sizes) or not met:
        raise typer.Exit(UNMET)
