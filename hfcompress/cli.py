"""The command line: what runs and measures is here, what publishes and looks in `commands/`."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .commands import looking, many, publishing
from .commands.shared import (
    MISTAKE,
    OK,
    UNMET,
    RecipePath,
    Set,
    console,
    escape,
    loaded_recipe,
    quiet_libraries,
    resumable,
    tell_error,
)
from .core.disk import disk_is_full, full_disk
from .core.errors import DiskFullError, HFCompressError, readable
from .core.interrupt import end_with_parent, interrupt, on_request, status_of

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Compress Hugging Face models for text and vision, and measure what it brought.\n\n"
    "Start with `hfcompress run recipes/quickstart.yaml`: no download, under three minutes.\n\n"
    "Exit status: 0 done, 2 a mistake in what was asked, 3 ran but a `require:` line was not met, or a checked "
    "card no longer holds; 130 and 143 stopped by Ctrl-C or SIGTERM, with a checkpoint where it trained.",
)


@app.command()
def run(
    recipe: RecipePath,
    output: Annotated[Path | None, typer.Option(help="Run folder; by default out/ and the recipe's name.")] = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a run of this recipe stopped; what is done is kept.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Delete the run in the folder, once the recipe is checked, and start anew."),
    ] = False,
    card: Annotated[bool, typer.Option(help="Write the model card with its figures, and try the code on it.")] = True,
) -> None:
    """Compress a model as a recipe says, measure it against the original, and write its card.

    A folder in which a run has done something is refused without `--resume` or `--overwrite`.
    """
    if resume and overwrite:
        raise typer.BadParameter("--resume keeps what is done and --overwrite deletes it: give one of them")
    loaded = loaded_recipe(recipe, set_)
    from .run.execute import run_recipe
    from .run.reporter import Reporter
    from .run.table import result_table

    folder = output or Path("out") / recipe.stem
    with resumable(f"What was done is in {folder}", "repeat the command with --resume"):
        result = run_recipe(loaded, folder, resume=resume, overwrite=overwrite, card=card, reporter=Reporter(console))
    console.print()
    console.print(result_table(result))
    for finding in result.findings:
        console.print(f"[yellow]![/] {escape(finding)}")
    for line in result.requirements:
        mark, word = ("[green]✓[/]", "met") if line.met else ("[red]✗[/]", "not met")
        console.print(f"{mark} {escape(line.name)} {line.wanted}: {word} ({line.measured:.4g})")
    model = escape(folder / "model")
    console.print(f"\nModel  {model}" + f"\nCard   {model}/README.md" * card, soft_wrap=True)
    if not all(line.met for line in result.requirements):
        raise typer.Exit(UNMET)


@app.command()
def plan(recipe: RecipePath, set_: Set = None) -> None:
    """Check a recipe against its model and data, and print what a run would do; trains and measures nothing."""
    loaded = loaded_recipe(recipe, set_)
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
    data: Annotated[
        Path | None,
        typer.Option(
            help="Recipe whose evaluation split is timed too, as it comes: --examples of it, one at a time, each of "
            "its own length, read by each model's own tokenizer or image processor.",
            metavar="RECIPE",
        ),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(min=1, help="With --data: so many examples, evenly spaced through the split; default: 100."),
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
    from .core.files import require_writable, write_text
    from .run import benching
    from .run.bench_rows import bench_records, bench_rows
    from .run.reporter import Reporter

    reporter = Reporter(console)
    if training is not None:
        console.print(benching.training_table(loaded_recipe(training, set_), reporter, rounds=rounds))
        return
    if not models:
        raise typer.BadParameter("name at least one model, or --training RECIPE")
    if examples is not None and data is None:
        raise typer.BadParameter("--examples says how many of the recipe in --data: name that too")
    if json_ is not None:
        require_writable(json_)
    grids, real = (loaded_recipe(path, set_) if path is not None else None for path in (calibration, data))
    measured = benching.bench_models(
        models, shape or [], engine or [], threads or [], rounds, reporter, grids, real, examples or benching.EXAMPLES
    )
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
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels per side; by default those that the checkpoint's image processor gives."),
    ] = None,
) -> None:
    """Write a checkpoint for an engine, or in another checkpoint format."""
    examples = loaded_recipe(calibration, None) if calibration is not None else None
    quiet_libraries()
    from .run.exporting import export_checkpoint

    written, messages = export_checkpoint(model, format_, output, examples, image_size)
    for message in messages:
        console.print(f"[yellow]![/] {escape(message)}", soft_wrap=True)
    for path in written:
        console.print(f"Wrote  {escape(path)}", soft_wrap=True)


for _command in (
    many.compare,
    many.search,
    publishing.card,
    publishing.table,
    publishing.push,
    looking.methods,
    looking.inspect,
    looking.doctor,
):
    app.command()(_command)


def main() -> None:
    """Run the command line; a user's mistake ends in one message and status 2, never in a traceback."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name of bytes that are no text is shown, as on stderr
        with contextlib.suppress(OSError):  # of a stream that cannot be looked at, such as a closed one
            sys.stdout.reconfigure(errors="backslashreplace")
    try:
        end_with_parent()
        with on_request(interrupt):
            code = app(standalone_mode=False)
    except KeyboardInterrupt as error:
        code = status_of(error)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        tell_error(message)
        code = MISTAKE
    sys.exit(_flushed(code if isinstance(code, int) else OK))


def _message(error: Exception) -> str | None:
    """Return what to tell of an error; None where it is a fault of this program."""
    if isinstance(error, HFCompressError) and (isinstance(error, DiskFullError) or not disk_is_full(error)):
        return str(error)
    if disk_is_full(error):
        return readable(full_disk(error, ".", "repeat the command"))
    if isinstance(error, OSError):  # a folder that cannot be written, a terminal that is gone
        return readable(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    if hasattr(error, "format_message"):  # typer's own word on how the command was written
        return readable(f"{error.format_message()} Try --help.")
    return None


def _flushed(code: int) -> int:
    """Write out what still waits for stdout; the status where that cannot be: the interpreter would only mumble."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:  # else who read it has seen enough
            tell_error(_message(error) or str(error))
            return MISTAKE
    return code


if __name__ == "__main__":
    main()
