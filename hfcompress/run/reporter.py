"""What a run says while it works: headings, progress bars, and lines of the log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from transformers import TrainerCallback

OnProgress = Callable[[str, float], None]


class Reporter:
    """Prints to a console; without one it is silent."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(quiet=True)

    def heading(self, text: str, aside: str = "") -> None:
        """Print a heading, and dimly what is to be known besides."""
        self.console.print(Text.assemble(("▸ ", "bold cyan"), (text, "bold"), (f" {aside}" if aside else "", "dim")))

    def say(self, text: str | Text, style: str = "") -> None:
        """Print a line; text is taken as it is, brackets included."""
        self.console.print(Text("  ").append(text if isinstance(text, Text) else Text(text, style)))

    @contextlib.contextmanager
    def bar(self, text: str) -> Iterator[OnProgress]:
        """Show a bar; yields a function to call with what is being done and the fraction done."""
        columns = (TextColumn("  {task.description:<34}", markup=False), BarColumn(), TimeElapsedColumn())
        # Drawing takes processor time that would show in what is being timed: seldom is enough.
        with Progress(*columns, console=self.console, refresh_per_second=1) as progress:
            task = progress.add_task(text, total=1.0)
            yield lambda description, fraction: progress.update(task, description=description, completed=fraction)


class TrainingBar(TrainerCallback):
    """A bar over optimizer steps with the last loss, and every log entry in the run's log."""

    def __init__(self, reporter: Reporter, title: str, log: Callable[..., None]) -> None:
        self.reporter, self.title, self.write = reporter, title, log
        columns = (
            TextColumn("  {task.description:<34}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=reporter.console)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar where training starts, or resumes."""
        self.task = self.progress.add_task(self.title, total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar."""
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the loss and keep the entry."""
        if logs and "loss" in logs:
            self.progress.update(self.task, description=f"{self.title} · loss {float(logs['loss']):.3f}")
        self.write(stage=self.title, step=state.global_step, **(logs or {}))

    def close(self) -> None:
        """Stop drawing, however training ended."""
        self.progress.stop()
