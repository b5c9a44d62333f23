"""Target patterns: an exact module path, ``re:<regex>`` over paths, or a class name.

A layer that holds the floats of another class in its own way says so in `stands_for`, and answers to that name too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from .errors import TargetError, nearest


def matches(pattern: str, path: str, module: nn.Module) -> bool:
    """Say whether one pattern names this module; a regex has to match from the start of the path."""
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], path) is not None
        except re.error as error:
            raise TargetError(f"target {pattern!r} is not a valid regular expression: {error}") from error
    names = [cls.__name__ for cls in type(module).__mro__]
    return pattern in (path, *names, getattr(module, "stands_for", path))


def select(
    modules: Iterable[tuple[str, nn.Module]], targets: Sequence[str] | None, ignore: Sequence[str] = (), where: str = ""
) -> list[tuple[str, nn.Module]]:
    """Return the modules that `targets` names (all when None) less those that `ignore` names.

    Raises TargetError for a pattern, wanted or ignored, that matches no module: a misspelt pattern must not pass.
    """
    modules = list(modules)
    for pattern in [*(targets or ()), *ignore]:
        if not any(matches(pattern, path, module) for path, module in modules):
            paths = [p for p, _ in modules] + [type(m).__name__ for _, m in modules]
            raise TargetError(
                f"{where or 'targets'}: {pattern!r} matches no module.{nearest(pattern.removeprefix('re:'), paths)}"
            )
    wanted = [(p, m) for p, m in modules if targets is None or any(matches(t, p, m) for t in targets)]
    return [(p, m) for p, m in wanted if not any(matches(t, p, m) for t in ignore)]
