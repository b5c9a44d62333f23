"""Every registered method, on every tiny model, keeps every promise of the protocol."""

from __future__ import annotations

import pytest
from cases import CASES
from contract import EVERY, TRAINING
from tiny import MODELS

import hfcompress.methods  # noqa: F401 - fills the registry
from hfcompress.core.registry import list_methods


def test_every_method_has_a_case():
    missing = sorted(set(list_methods()) - set(CASES))
    assert not missing, f"add an entry to CASES in tests/cases.py for: {', '.join(missing)}"
    assert set(CASES) == set(list_methods())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("check", EVERY, ids=lambda c: c.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", list_methods())
def test_contract(name, check, model, tmp_path):
    check(list_methods()[name], CASES[name], model, tmp_path)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("check", TRAINING, ids=lambda c: c.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", list_methods())
def test_contract_in_training(name, check, model, tmp_path):
    check(list_methods()[name], CASES[name], model, tmp_path)
