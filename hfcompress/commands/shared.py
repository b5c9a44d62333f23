"""What every command shares: consoles, exit statuses, arguments, and opening a recipe."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import markup
from rich.console import Console
from rich.text import Text

from ..core.interrupt import status_of

if TYPE_CHECKING:
    from ..recipe.load import LoadedRecipe

OK, MISTAKE, UNMET = 0, 2, 3

console = Console(emoji=False)  # a name may hold :tada:
errors = Console(stderr=True, emoji=False)

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


def loaded_recipe(recipe: Path, overrides: list[str] | None) -> LoadedRecipe:
    """Read and check a recipe with its `--set` values; RecipeError names what is wrong."""
    quiet_libraries()
    from ..recipe.load import load_recipe

    return load_recipe(recipe, overrides or ())


@contextlib.contextmanager
def resumable(done: str, how: str) -> Iterator[None]:
    """End the command on Ctrl-C or SIGTERM with its own status and a line: where `done` lies, and `how` to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError):  # the terminal may be gone
            errors.print(f"\n[yellow]Interrupted.[/] {escape(done)}: {escape(how)} to go on.")
        raise typer.Exit(status_of(error)) from None


def quiet_libraries() -> None:
    """Leave the terminal to our own bars and messages."""
    import logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it mentions an optional kernel at every import
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def tell_error(message: str) -> None:
    """Print an error's message to stderr as it is; nothing where stderr cannot be written either."""
    with contextlib.suppress(OSError):
        errors.print(Text.assemble(("error:", "red"), " ", message), soft_wrap=True, highlight=False)


def escape(text: Any) -> str:
    """Return text that the console prints as it is: no brackets in it are taken for a style."""
    return markup.escape(str(text))
