"""Names and titles are what they are: nothing in them means anything to a card, a report, a figure, a terminal."""

from __future__ import annotations

import io

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console
from test_card import make_result

from hfcompress.commands import shared
from hfcompress.core.method import Category
from hfcompress.measure.cells import CellRecord, State, SuiteRecord
from hfcompress.measure.examples import Example, Examples
from hfcompress.measure.result import ClassRow, Part, Requirement, Source, StageRecord
from hfcompress.measure.trials import SearchRecord, Size, Trial
from hfcompress.publish import examples, search, suite
from hfcompress.publish.canvas import save
from hfcompress.publish.card import render_card
from hfcompress.publish.comparison import comparison_markdown
from hfcompress.publish.suite_figure import Dot, draw_dots
from hfcompress.run.check import check_table
from hfcompress.run.claims import Check
from hfcompress.run.inspect_bars import layer_bars
from hfcompress.run.reporter import Reporter
from hfcompress.run.table import result_table

NAMES = [
    "$x_{",
    "`a`",
    "``a`` b`",
    "a|b|",
    "[/bold]",
    "[red]x",
    "[a](http://b)",
    "![a](b)",
    "<script>alert(1)</script>",
    "<!-- x",
    "a\n\n# b\n---\n",
    "**b** __c__ _d_ ~~e~~",
    "&amp; &lt;",
    "back\\slash\\",
    "{{ x }} {% y %}",
    "🎉 :tada: é",
    "\u202eשלום",
    "%s %(x)s {0}",
    "$a$ $$b$$",
    "_leading",
    "x" * 300,
]
plainly = pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))


def line(name: str) -> str:
    return " ".join(name.split())


def named(name: str):
    """Return a result in which everything that has a name is called `name`."""
    plain = make_result()
    head = plain.difference[0].model_copy(update={"classes": [ClassRow(name=name, examples=9, before=5, after=4)]})
    return make_result(
        title=name,
        base_model=Source(id=name),
        dataset=Source(id=name, split="train[:80%]"),
        stages=[StageRecord(name=name, methods={"distill": {"targets": [name]}}, seconds=1.0)],
        difference=[head, *plain.difference[1:]],
        requirements=[Requirement(name=name, wanted=">=1", measured=2.0, met=True)],
        recipe=f"title: {name}",
        overrides=[f"title={name}"],
    )


def parsed(markdown: str) -> tuple[list[str], list[str], set[str]]:
    """Return the headings as they are read, all text by block, and what HTML there is."""
    headings, texts, html, heading = [], [], set(), False
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown):
        heading = token.type == "heading_open" or (heading and token.type != "heading_close")
        if token.type == "html_block":
            html.add(token.content.strip().split(">")[0])
        inside = [c for c in token.children or () if c.type in ("text", "code_inline")]
        html |= {c.content for c in token.children or () if c.type == "html_inline"}
        if token.type == "inline":
            texts.append("".join(c.content for c in inside))
            if heading:
                headings.append(texts[-1])
    return headings, texts, html


@plainly
def test_a_card_shows_a_name_letter_by_letter(name):
    plain = make_result()
    benign, _, html = parsed(render_card(plain).split("---\n", 2)[2])
    card = render_card(named(name))
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert isinstance(yaml.safe_load(front), dict)
    headings, texts, found = parsed(body)
    assert headings[0] == line(name) and f"Stage 1: {line(name)}" in headings
    assert [h for h in headings if not h.startswith("Stage")][1:] == [h for h in benign if not h.startswith("Stage")][
        1:
    ]
    assert found == html, "a name became HTML"
    assert any(text.startswith(line(name)) and "compressed with hfcompress" in text for text in texts)
    assert any(f"Right answers by class: {line(name)} 5 → 4 of 9" in text for text in texts)


@plainly
def test_reports_show_a_name_letter_by_letter(name):
    cell = CellRecord(
        name="a-b-1", model="b", method="a", category=Category.QUANTIZATION, seed=1, state=State.FAILED, reason=name
    )
    headings, texts, html = parsed(suite.render_report(SuiteRecord(title=name, cells=[cell]), {}, {}))
    assert headings == [line(name), "b"] and not html
    assert f"none: {line(name)}" in texts and f"a, seed 1: {line(name)}" in texts
    trials = [
        Trial(number=0, params={"k": name}, state=State.DONE, seconds=1.0, value=0.5, cost=2.0),
        Trial(number=1, params={"k": name}, state=State.FAILED, seconds=1.0, reason=name),
    ]
    record = SearchRecord(
        title=name, hash="x", space={"k": [name, "b"]}, cost="size_ratio", lower_cost_is_better=False,
        metric="accuracy", trials=trials,
        sizes=[Size(name="small", bounds={"size_ratio": ">=2"}, state=State.FAILED, reason=name)],
    )  # fmt: skip
    headings, texts, html = parsed(search.render_report(record, {}, None))
    assert headings == [line(name), "Trials"] and not html
    assert f"k: {line(name)}, b" in texts and f"trial 2 (k: {line(name)}): {line(name)}" in texts
    assert any(f'--collection "{line(name)}"' in text for text in texts)
    save_nothing = comparison_markdown({name: make_result()})
    assert any(text == line(name) for text in parsed(save_nothing)[1])


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.filterwarnings("ignore:.*missing from font")
def test_a_figure_shows_names_letter_by_letter(tmp_path):
    shown = [Example(row=0, label=name, baseline=name, compressed="x", chosen=True) for name in NAMES]
    tiles = [Image.fromarray(np.zeros((8, 8, 3), np.uint8))] * len(NAMES)
    figure = examples.draw(Examples(side=8, total=99, disagreements=0, examples=shown), tiles)
    save(figure, tmp_path / "grid.png")
    assert all(not text.get_parse_math() for axis in figure.axes for text in (axis.title, *axis.texts))
    dots = [Dot(name, next(iter(Category)), 1.0 + place, 0.5) for place, name in enumerate(NAMES[:8])]
    save(draw_dots(dots, make_result()), tmp_path / "dots.png")
    assert (tmp_path / "dots.png").stat().st_size > 1000


@plainly
def test_the_terminal_shows_a_name_letter_by_letter(name):
    console = Console(file=io.StringIO(), width=2000, emoji=shared.console._emoji, color_system=None)
    Reporter(console).heading(name, name)
    Reporter(console).say(name)
    console.print(result_table(named(name)))
    console.print(check_table([Check(name=name, claimed=name, found=name, holds=True)], "x"))
    console.print(layer_bars([], [Part(name=name, numbers=5, nonzeros=5, size_bytes=20)]))
    said = console.file.getvalue()
    first = name.splitlines()[0]
    assert said.count(first) >= 6, said
