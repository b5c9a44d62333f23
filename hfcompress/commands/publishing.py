"""Commands about what a run left: its card, tables of several, the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared import UNMET, Folder, console, errors, escape, quiet_libraries


def card(
    folder: Folder,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Runs of the same model and data to draw this one among; repeatable.", metavar="DIR"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: measure again what the result claims.")
    ] = False,
    no_time: Annotated[bool, typer.Option("--no-time", help="With --check: leave the clock out.")] = False,
    baseline: Annotated[
        str | None, typer.Option(help="With --check: the original to time against, where it is not found.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="With --check, of a model's folder alone: where the recipe's data lies now, such as "
            "`data.path=path/to/sst2`; repeatable.",
            metavar="KEY=VALUE",
        ),
    ] = None,
) -> None:
    """Write a run's model card anew from its result.json, or --check that its numbers still hold (else status 3)."""
    from ..publish.card import write_card
    from ..run.verify import run_folder

    path = run_folder(folder).path
    if not check:
        if no_time or baseline or set_:
            raise typer.BadParameter("--no-time, --baseline and --set say how to --check: give that too")
        from ..publish.comparison import find_results

        others = find_results(beside) if beside else None
        console.print(f"Card   {escape(write_card(path, others=others))}", soft_wrap=True)
        return
    quiet_libraries()
    from ..run.check import check_card, check_table, unchecked

    found = check_card(path, time=not no_time, baseline=baseline, overrides=set_ or ())
    console.print(check_table(found, f"{escape(path.name)}: what the card claims, measured again"))
    if open_ := unchecked(found):
        console.print(f"[yellow]{escape(open_)}[/]")
    if any(line.holds is False for line in found):
        errors.print("[red]error:[/] a number of the card no longer holds")
        raise typer.Exit(UNMET)


def table(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Run folders, or folders that hold several, such as model_cards.", show_default=False),
    ],
    write: Annotated[
        Path | None,
        typer.Option(help="Markdown file to write to, between `<!-- runs -->` and `<!-- /runs -->`.", metavar="FILE"),
    ] = None,
) -> None:
    """Show measured runs side by side: bytes, time, quality and minutes, a table per model and data set."""
    from ..publish.comparison import find_results
    from ..run.table import comparison_tables, write_comparison

    results = find_results(folders)
    if write is not None:
        write_comparison(results, folders, write)
        return
    for drawn in comparison_tables(results):
        console.print(drawn)


def push(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, as `--output` named them.", show_default=False)],
    repo_id: Annotated[
        str | None,
        typer.Option(help="Repository as user/name, of one run; by default the recipe's `publish`."),
    ] = None,
    private: Annotated[bool | None, typer.Option(help="Create it private or public; default: the recipe's.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", "--branch", help="Branch to push to; made when missing.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    with_code: Annotated[
        bool | None,
        typer.Option(
            "--with-code/--without-code",
            help="Upload the loader as source files too, for `trust_remote_code`; default: the recipe's, else not.",
        ),
    ] = None,
    collection: Annotated[
        str | None, typer.Option(help="Put the repositories into the collection of this name.", metavar="NAME")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would go up, with sizes; touches no network.")
    ] = False,
) -> None:
    """Check that each run's model reproduces its own numbers, then upload it with its card in one commit."""
    quiet_libraries()
    from ..publish.hub import Target, collect
    from ..run.pushing import push_one, pushes, upload_table

    target, found = Target(revision, create_pr), pushes(folders, repo_id, private, with_code)
    for one in found:
        name = escape(one.folder.path.name)
        if one.needs_no_code:
            console.print(f"{name}: it loads with transformers alone and needs no code: none goes up")
        if dry_run:
            console.print(upload_table(one, target))
            continue
        console.print(f"{name}: loading the saved model again and evaluating it …")
        console.print(f"Pushed {escape(push_one(one, target))}", soft_wrap=True)
    if collection is not None and not dry_run:
        address = collect(collection, [one.repo_id for one in found], private=any(one.private for one in found))
        console.print(f"Collection {escape(address)}", soft_wrap=True)
