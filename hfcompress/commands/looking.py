"""Commands that look: at methods, at a checkpoint, at this installation."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .shared import console, errors, escape, quiet_libraries


def methods(
    name: Annotated[str | None, typer.Argument(help="Show the settings of one method.", show_default=False)] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a recipe, for editors.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the README's table.")] = False,
    families: Annotated[
        bool, typer.Option("--families", help="Print which method works on which model type, and why not on others.")
    ] = False,
) -> None:
    """List the compression methods, or the settings of one."""
    quiet_libraries()
    if schema:
        from ..recipe.load import recipe_schema

        typer.echo(json.dumps(recipe_schema(), indent=2))
        return
    from ..run.show_methods import method_table, methods_markdown, methods_table

    if markdown:
        typer.echo(methods_markdown())
    elif families:
        from ..run.families_table import families_markdown

        typer.echo(families_markdown())
    else:
        console.print(methods_table() if name is None else method_table(name))


def inspect(
    folder: Annotated[str, typer.Argument(help="Model folder, run folder or Hub id.", show_default=False)],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="First compare the weights with the SHA-256 they were saved with; else status 2."
        ),
    ] = False,
) -> None:
    """Show what a checkpoint holds: files, and heads, units and bits of every block."""
    from ..run.inspect import inspect_checkpoint, verify_checkpoint

    if verify:
        console.print(f"As saved: {escape(verify_checkpoint(folder))}", soft_wrap=True)
    console.print(inspect_checkpoint(folder))


def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    engine: Annotated[
        list[str] | None, typer.Option(help="Engine to try; repeatable; by default all.", metavar="NAME")
    ] = None,
) -> None:
    """Look at this installation and machine, try every engine, and say what mends what is broken."""
    quiet_libraries()
    from ..run.doctor import doctor_table, examine

    lines = examine(engine, tell=errors.print)
    if json_:
        typer.echo(json.dumps([line.model_dump() for line in lines], indent=2))
    else:
        console.print(doctor_table(lines))
    if any(line.needed and line.state != "ok" for line in lines):
        raise typer.Exit(1)
