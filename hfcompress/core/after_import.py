"""Acting on a module of another library once something imports it, without importing it, which may take seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Act = Callable[[ModuleType], None]


def after_import(name: str, act: Act) -> None:
    """Call `act` with the module called `name`: at once where it is imported, and right after each later import of it.

    A finder in `sys.meta_path`, Python's own place for this, wraps the loader that the module is found with.
    """
    finder = next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)
    if finder is None:
        sys.meta_path.insert(0, finder := _Finder())
    acts = finder.acts.setdefault(name, [])
    if act not in acts:
        acts.append(act)
    if name in sys.modules:
        act(import_module(name))  # which waits where another thread is just importing it


class _Finder(MetaPathFinder):
    """Finds modules as the other finders do, and has something done with some of them once they have run."""

    def __init__(self) -> None:
        self.acts: dict[str, list[Act]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders give, with its loader wrapped; None for all but a few modules."""
        if fullname not in self.acts:
            return None
        for finder in sys.meta_path:
            found = None if isinstance(finder, _Finder) else finder.find_spec(fullname, path, target)
            if found is not None:
                if found.loader is not None:
                    found.loader = _ActingLoader(found.loader, self.acts[fullname])
                return found
        return None


class _ActingLoader(Loader):
    """Runs a module as its own loader does, and what there is to do with it then."""

    def __init__(self, own: Any, acts: list[Act]) -> None:
        self._own, self._acts = own, acts

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what the module's own loader creates."""
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, then act on it."""
        self._own.exec_module(module)
        for act in self._acts:
            act(module)

    def __getattr__(self, name: str) -> Any:  # such as get_source, which tracebacks read
        return getattr(vars(self)["_own"], name)
