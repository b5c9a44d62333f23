"""The command line: run, plan, bench, card, table, push, methods, inspect."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from .recipe.load import LoadedRecipe

OK, MISTAKE, UNMET, INTERRUPTED = 0, 2, 3, 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Compress Hugging Face models for text and vision, and measure what it brought.\n\n"
    "Start with `hfcompress run recipes/quickstart.yaml`: no download, under three minutes.\n\n"
    "Exit status: 0 done, 2 a mistake in what was asked, 3 ran but a `require:` line was not met, or a checked "
    "card no longer holds.",
)
console = Console()
errors = Console(stderr=True)

RecipePath = Annotated[Path, typer.Argument(help="Recipe file (YAML).", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a value, such as `stages.0.methods.distill.temperature=3`; repeatable.",
        metavar="KEY=VALUE",
    ),
]
Folder = Annotated[Path, typer.Argument(help="Run folder, as `--output` named it.", show_default=False)]


@app.command()
def run(
    recipe: RecipePath,
    output: Annotated[Path | None, typer.Option(help="Run folder; by default out/<recipe's name>.")] = None,
    set_: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
) -> None:
    """Compress a model as a recipe says, measure it against the original, and write its card."""
    loaded = _load(recipe, set_)
    from .run.execute import run_recipe
    from .run.reporter import Reporter
    from .run.table import result_table

    folder = output or Path("out") / recipe.stem
    try:
        result = run_recipe(loaded, folder, resume=resume, reporter=Reporter(console))
    except KeyboardInterrupt:
        errors.print(
            f"\n[yellow]Interrupted.[/] What was done is in {folder}: repeat the command with --resume to go on."
        )
        raise typer.Exit(INTERRUPTED) from None
    console.print()
    console.print(result_table(result))
    for finding in result.findings:
        console.print(f"[yellow]![/] {finding}")
    for line in result.requirements:
        mark, word = ("[green]✓[/]", "met") if line.met else ("[red]✗[/]", "not met")
        console.print(f"{mark} {line.name} {line.wanted}: {word} ({line.measured:.4g})")
    console.print(f"\nModel  {folder / 'model'}\nCard   {folder / 'model' / 'README.md'}", soft_wrap=True)
    if not all(line.met for line in result.requirements):
        raise typer.Exit(UNMET)


@app.command()
def plan(recipe: RecipePath, set_: Set = None) -> None:
    """Check a recipe against its model and data, and print what a run would do; trains nothing."""
    loaded = _load(recipe, set_)
    from .run.setup import open_recipe
    from .run.show_plan import plan_table

    console.print(plan_table(open_recipe(loaded).plan))


@app.command()
def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Model folders, run folders, Hub ids or .onnx files; the others are compared with the first.",
            show_default=False,
        ),
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="Workload as BATCHxLENGTH (or BATCHxPIXELS); repeatable.", metavar="BxL")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Engine to time in; repeatable; by default all installed but pytorch-compile."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Recipe whose training split gives activations the grids that a checkpoint lacks, for "
            "onnxruntime-static-int8 and openvino-int8.",
            metavar="RECIPE",
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Threads per engine; repeatable, a table for each; by default all cores."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved rounds.")] = 7,
    json_: Annotated[
        Path | None, typer.Option("--json", help="Also write every row to a file.", metavar="FILE")
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(
            help="Instead: time a training step of this recipe against the stock Trainer's.", metavar="RECIPE"
        ),
    ] = None,
    set_: Set = None,
) -> None:
    """Time models against each other, or (--training) HFCompressTrainer against transformers' Trainer."""
    from .core.files import write_text
    from .run import benching
    from .run.bench_rows import bench_records, bench_rows
    from .run.reporter import Reporter

    reporter = Reporter(console)
    if training is not None:
        console.print(benching.training_table(_load(training, set_), reporter, rounds=rounds))
        return
    if not models:
        raise typer.BadParameter("name at least one model, or --training RECIPE")
    examples = _load(calibration, set_) if calibration is not None else None
    measured = benching.bench_models(models, shape or [], engine or [], threads or [], rounds, reporter, examples)
    for count, found in measured.items():
        console.print(bench_rows(found, count))
    if json_ is not None:
        write_text(json_, json.dumps(bench_records(measured), indent=2) + "\n")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Model folder, run folder or Hub id.", show_default=False)],
    format_: Annotated[
        list[str],
        typer.Option(
            "--format",
            help="An engine's name, such as openvino-int8, for the file it reads; or gptq, for a checkpoint that "
            "transformers with gptqmodel and serving engines read. Engines are repeatable.",
            show_default=False,
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="Folder to write to; engines: by default the model's.")] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Recipe whose training split gives activations the grids that are missing.", metavar="RECIPE"
        ),
    ] = None,
) -> None:
    """Write a checkpoint for an engine, or in another checkpoint format."""
    examples = _load(calibration, None) if calibration is not None else None
    _quiet_libraries()
    from .run.exporting import export_checkpoint

    written, messages = export_checkpoint(model, format_, output, examples)
    for message in messages:
        console.print(f"[yellow]![/] {_escape(message)}", soft_wrap=True)
    for path in written:
        console.print(f"Wrote  {path}", soft_wrap=True)


@app.command()
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
) -> None:
    """Write a run's model card anew from its result.json, or --check that its numbers still hold (else status 3)."""
    from .publish.card import write_card
    from .run.verify import run_folder

    path = run_folder(folder).path
    if not check:
        from .publish.comparison import find_results

        others = find_results(beside) if beside else None
        console.print(f"Card   {write_card(path, others=others)}", soft_wrap=True)
        return
    _quiet_libraries()
    from .run.check import check_card, check_table

    found = check_card(path, time=not no_time, baseline=baseline)
    console.print(check_table(found, f"{path.name}: what the card claims, measured again"))
    if any(line.holds is False for line in found):
        errors.print("[red]error:[/] a number of the card no longer holds")
        raise typer.Exit(UNMET)


@app.command()
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
    from .publish.comparison import find_results
    from .run.table import comparison_tables, write_comparison

    results = find_results(folders)
    if write is not None:
        write_comparison(results, folders, write)
        return
    for drawn in comparison_tables(results):
        console.print(drawn)


@app.command()
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
    collection: Annotated[
        str | None, typer.Option(help="Put the repositories into the collection of this name.", metavar="NAME")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would go up, with sizes; touches no network.")
    ] = False,
) -> None:
    """Check that each run's model reproduces its own numbers, then upload it with its card in one commit."""
    _quiet_libraries()
    from .publish.hub import Target, collect
    from .run.pushing import push_one, pushes, upload_table

    target, found = Target(revision, create_pr), pushes(folders, repo_id, private)
    for one in found:
        if dry_run:
            console.print(upload_table(one))
            continue
        console.print(f"{one.folder.path.name}: loading the saved model again and evaluating it …")
        console.print(f"Pushed {push_one(one, target)}", soft_wrap=True)
    if collection is not None and not dry_run:
        address = collect(collection, [one.repo_id for one in found], private=any(one.private for one in found))
        console.print(f"Collection {address}", soft_wrap=True)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show the settings of one method.", show_default=False)] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a recipe, for editors.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the README's table.")] = False,
    families: Annotated[
        bool, typer.Option("--families", help="Print which method works on which model type, and why not on others.")
    ] = False,
) -> None:
    """List the compression methods, or the settings of one."""
    from .recipe.load import recipe_schema
    from .run.show_methods import method_table, methods_markdown, methods_table

    if schema:
        typer.echo(json.dumps(recipe_schema(), indent=2))
    elif markdown:
        typer.echo(methods_markdown())
    elif families:
        _quiet_libraries()
        from .run.families_table import families_markdown

        typer.echo(families_markdown())
    else:
        console.print(methods_table() if name is None else method_table(name))


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="Model folder, run folder or Hub id.", show_default=False)],
) -> None:
    """Show what a checkpoint holds: files, and heads, units and bits of every block."""
    from .run.inspect import inspect_checkpoint

    console.print(inspect_checkpoint(folder))


@app.command()
def doctor(
    json_: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    engine: Annotated[
        list[str] | None, typer.Option(help="Engine to try; repeatable; by default all.", metavar="NAME")
    ] = None,
) -> None:
    """Look at this installation and machine, try every engine, and say what mends what is broken."""
    _quiet_libraries()
    from .run.doctor import doctor_table, examine

    lines = examine(engine)
    if json_:
        typer.echo(json.dumps([line.model_dump() for line in lines], indent=2))
    else:
        console.print(doctor_table(lines))
    if any(line.needed and line.state != "ok" for line in lines):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; a user's mistake ends in one message and status 2, never in a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from .core.errors import HFCompressError

    try:
        code = app(standalone_mode=False)
    except HFCompressError as error:
        errors.print(f"[red]error:[/] {_escape(error)}", soft_wrap=True, highlight=False)
        code = MISTAKE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:
        errors.print(f"[red]error:[/] {_escape(_os_error(error))}", soft_wrap=True, highlight=False)
        code = MISTAKE
    except Exception as error:
        if not hasattr(error, "format_message"):  # not typer's own word on how the command was written
            raise
        errors.print(f"[red]error:[/] {_escape(error.format_message())} Try --help.", soft_wrap=True, highlight=False)
        code = MISTAKE
    sys.exit(code if isinstance(code, int) else OK)


def _load(recipe: Path, overrides: list[str] | None) -> LoadedRecipe:
    _quiet_libraries()
    from .recipe.load import load_recipe

    return load_recipe(recipe, overrides or ())


def _quiet_libraries() -> None:
    """Leave the terminal to our own bars and messages."""
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it mentions an optional kernel at every import
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _os_error(error: OSError) -> str:
    """Say what the system refused: a full disk, a folder that cannot be written."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _escape(text: Any) -> str:
    return str(text).replace("[", r"\[")


if __name__ == "__main__":
    main()
