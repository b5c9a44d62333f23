"""The card's templates: text files beside this one, filled by jinja2 with undefined names as errors."""

from __future__ import annotations

import json
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(name: str, **values: Any) -> str:
    """Fill the template `name` of the `templates/` folder; an undefined name raises jinja2.UndefinedError."""
    return _environment().get_template(name).render(**values)


def cell(text: object) -> str:
    """Return `text` fit for one cell of a Markdown table: on one line, bars escaped."""
    return " ".join(str(text).split()).replace("|", "\\|")


# Punctuation that Markdown or HTML gives a meaning within a line. An underscore inside a word has none, nor have
# brackets around what is followed by no address.
_ONE = r"[\\`*\[\]<~$]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])"
_ALL, _BRACKETS = re.compile(_ONE), re.compile(rf"\[(?P<inside>[^\[\]]*)\](?![(\[:])|{_ONE}")


def words(text: object) -> str:
    """Return a name or title as Markdown that shows it letter by letter on one line; for a table, pass it to `cell`."""

    def literal(found: re.Match[str]) -> str:
        inside = found["inside"]
        return rf"\{found[0]}" if inside is None else f"[{_ALL.sub(_escaped, inside)}]"

    return _BRACKETS.sub(literal, " ".join(str(text).split()))


def linked(text: object, address: str) -> str:
    """Return a link that shows `text` letter by letter."""
    return f"[{_ALL.sub(_escaped, ' '.join(str(text).split()))}]({address})"


def _escaped(found: re.Match[str]) -> str:
    return rf"\{found[0]}"


def code(text: object) -> str:
    """Return `text` as a code span on one line that holds it letter by letter; not in a table, for its bars."""
    line = " ".join(str(text).split())
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", line)), default=0))
    room = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{fence}{room}{line}{room}{fence}"


def fenced(text: str, language: str = "") -> str:
    """Return `text` as a fenced code block, with a fence longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def literal(text: str) -> str:
    """Return `text` as a string literal of Python."""
    return json.dumps(text, ensure_ascii=False)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(cell=cell, words=words, code=code, fenced=fenced, literal=literal)
    return environment
