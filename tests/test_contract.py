"""Every registered method, on every tiny model, keeps every promise of the protocol or says why it cannot."""

from __future__ import annotations

import pytest
from cases import CASES, VARIANTS
from contract import CHECKS, Subject
from tiny import MODELS, make

import hfcompress.methods  # noqa: F401 - fills the registry
from hfcompress.core.errors import HFCompressError
from hfcompress.core.registry import list_methods

SUBJECTS = {name: (name, case) for name, case in CASES.items()} | {
    f"{name}-{label}": (name, case) for name, cases in VARIANTS.items() for label, case in cases.items()
}


def test_every_method_has_a_case():
    missing = sorted(set(list_methods()) - set(CASES))
    assert not missing, f"add an entry to CASES in tests/cases.py for: {', '.join(missing)}"
    assert set(CASES) == set(list_methods())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_contract(name, model, tmp_path):
    """One test per pair, so that its short trainings are made once; every broken promise is named."""
    name, case = SUBJECTS[name]
    subject = Subject(list_methods()[name], case, model, tmp_path)
    if model in case.refuses:
        with pytest.raises(HFCompressError, match=case.refuses[model]):
            subject.prepared(make(model))
        return
    broken = []
    for check in CHECKS:
        try:
            check(subject)
        except AssertionError as error:
            broken.append(f"{check.__name__}: {error}")
    assert not broken, "\n".join(broken)
