"""Recipes, suites and searches as nobody should write them: a value, a line or the text of a good one made wrong."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

# As they stand in a file: among them what YAML or Python alone would choke on, or take for ever over.
VALUES = (
    "null", "~", "true", "no", "0", "-1", "1e309", "-1e309", ".nan", ".inf", "-.inf", "1e-320", "0x10", "1_000",
    "1:30", "9" * 5000, "-" + "9" * 5000, "9" * 19, str ( 2 ** 63 ), str ( 2 ** 64 ), "0." + "1" * 3000, "''", "' '",
    "[]", "{}", "[[]]", "[null]", "{'': 1}", "{a: {b: {c: {}}}}", "[1, [2, [3]]]", "2020-01-01",
    "2020-01-01 12:00:00", "!!binary aGk=", "!!binary '%'", "!!int foo", "!!float foo", "!!bool foo", "!!null foo",
    "!!timestamp foo", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!str 5", "!!seq foo", "!!map foo",
    "!!python/object:os.system x", "!x y", "!!python/name:os.system ''", "! x", '"\\ud800"', '"\\udfff x"', '"\\0"',
    '"a\\0b"', '"\\x1b[31m"', '"\\u202e"', '"\\U0001f389"', "'" + "x" * 100_000 + "'", "'" + "é" * 30_000 + "'", "/",
    ".", "..", "/dev/zero", "/dev/random", "/dev/stdin", "/proc", "/dev/null", "~root", "'~nobody/x'", "'$x_{'",
    "'`a`'", "'a|b'", "'[/bold]'", "'<script>'", "'{{ x }}'", "'%s%n'", "'a\nb'", "&x [*x]", "&x {a: *x}", "*nothing",
    "{<<: 1}", "{<<: [1, 2]}", "{<<: {a: 1}}", "{<<: &x {<<: *x}}", "{a: 1, a: 2}", "{1: 2}", "{null: 2}", "{[1]: 2}",
    "{{a: 1}: 2}", "? a", "- - - -", "|\n  text", ">=", "'>=1e999'", "'>= -5'", "sklearn:", "sklearn:files",
    "sklearn:svmlight_file", "'sklearn:../x'", "re:(", "re:(a+)+$", "'re:['", "'*'", "'**.**'", "[" * 2000,
    "[" * 40 + "]" * 40, "{a: " * 300 + "1" + "}" * 300, "train[:", "'train[:200%]'", "'train[5:1]'", "train+", "+",
    "a/b/c", "'a b'", "main", "trust_remote_code", "float16", "float64", "[0, 1]", "[1, 0]", "[-1]", "[a]",
    "[1, 2, 3, 4]",
)  # fmt: skip
TEXTS = (
    "", "\n", "---", "...", "--- a\n--- b\n", "\t", "a", "- a\n", "null", "5", "[", "{", "%YAML 9.9\n---\na: 1\n",
    "%TAG ! !\n---\n", ": : :", "&a *a", "*a", "? ? ?", "a: b: c", "\x00", "\x07", "\ufeff{}", "\ud800", "a:\n\t- b",
    "'", '"', '"\\', "|", ">", "!!", "!", "&", "@a", "`a`",
)  # fmt: skip


def bomb(levels: int = 12, width: int = 10, *, merge: bool = False) -> str:
    """Return YAML of a few hundred letters that stands for `width ** levels` values."""
    lines = ["a0: &a0 {k: v}"]
    for i in range(1, levels):
        inner = ", ".join([f"*a{i - 1}"] * width)
        lines.append(f"a{i}: &a{i} {{<<: [{inner}]}}" if merge else f"a{i}: &a{i} [{inner}]")
    return "\n".join(lines) + "\n"


def mutants(good: dict[str, Any], names: list[str], seed: int) -> Iterator[str]:
    """Yield texts without end, each the YAML of `good` with something wrong; `names` are keys of that kind of file."""
    chance = random.Random(seed)
    ways: list[Callable[[random.Random, dict[str, Any], list[str]], str]] = [
        _value, _value, _value, _key, _line, _letters, _letters, _whole, _twice,
    ]  # fmt: skip
    while True:
        yield chance.choice(ways)(chance, copy.deepcopy(good), names)


_HOLE = "HOLE_IN_A_RECIPE"


def _written(values: Any, fill: str) -> str:
    return yaml.safe_dump(values, sort_keys=False).replace(f"'{_HOLE}'", fill).replace(_HOLE, fill)


def _places(values: Any) -> list[tuple[Any, Any]]:
    """Return every mapping or list with each of its keys, all the way down."""
    keys = list(values) if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
    return [place for key in keys for place in ((values, key), *_places(values[key]))]


def _value(chance: random.Random, values: dict[str, Any], names: list[str]) -> str:
    """One value, or two, of another kind."""
    inside, key = chance.choice(_places(values))
    inside[key] = _HOLE
    return _written(values, chance.choice(VALUES))


def _key(chance: random.Random, values: dict[str, Any], names: list[str]) -> str:
    """A key more, known or not, somewhere."""
    mappings = [values, *(inside[key] for inside, key in _places(values) if isinstance(inside[key], dict))]
    name = chance.choice([*names, *names, "ключ", "a.b", "", "x" * 5000, "__class__", "model_config", "$ref", "0"])
    chance.choice(mappings)[name] = _HOLE
    return _written(values, chance.choice(VALUES))


def _line(chance: random.Random, values: dict[str, Any], names: list[str]) -> str:
    """A line gone, doubled or moved."""
    lines = _written(values, "x").splitlines()
    at = chance.randrange(len(lines))
    line = lines.pop(at)
    for _ in range(chance.randrange(3)):
        lines.insert(chance.randrange(len(lines) + 1), line)
    return "\n".join(lines)


def _letters(chance: random.Random, values: dict[str, Any], names: list[str]) -> str:
    """A few letters gone or others."""
    text = list(_written(values, "x"))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text))
        text[at : at + chance.randrange(3)] = chance.choice("\n\t :-[]{}&*!|>'\"%@`#,?x0é\x00\x85\ufeff\u2028")
    return "".join(text)


def _whole(chance: random.Random, values: dict[str, Any], names: list[str]) -> str:
    """Another text altogether, or one after it."""
    more = chance.choice([*TEXTS, bomb(), bomb(merge=True), *VALUES])
    return more + _written(values, "x") if chance.random() < 0.5 else _written(values, "x") + more


def _twice(chance: random.Random, values: dict[str, Any], names: list[str]) -> str:
    """A part of it in place of another part."""
    inside, key = chance.choice(_places(values))
    other, name = chance.choice(_places(copy.deepcopy(values)))
    inside[key] = other[name]
    return yaml.safe_dump(values, sort_keys=False)
