"""Every registered method, on every tiny model, keeps every promise of the protocol or says why it cannot.

After every change each method meets one text and one image model (`rotation.py`), and each refusal is heard; the rest
of the product is slow.
"""

from __future__ import annotations

from collections import Counter

import pytest
from cases import CASES, VARIANTS
from contract import CHECKS, Subject, fresh
from rotation import LEAST, rotated
from tiny import MODELS, is_image

import hfcompress.methods  # noqa: F401 - fills the registry
from hfcompress.core.errors import HFCompressError
from hfcompress.core.registry import list_methods

SUBJECTS = {name: (name, case) for name, case in CASES.items()} | {
    f"{name}-{label}": (name, case) for name, cases in VARIANTS.items() for label, case in cases.items()
}
KEPT = {name: [model for model in MODELS if model not in case.refuses] for name, (_, case) in SUBJECTS.items()}
KINDS = [[model for model in MODELS if is_image(model) == images] for images in (False, True)]
FAST = rotated(KEPT, KINDS)
REFUSED = [(name, model) for name, (_, case) in SUBJECTS.items() for model in MODELS if model in case.refuses]


def _slow_unless_fast() -> list[object]:
    pairs = [(name, model) for name in SUBJECTS for model in KEPT[name]]
    return [pytest.param(*pair, marks=[] if pair in FAST else pytest.mark.slow) for pair in pairs]


def test_every_method_has_a_case():
    missing = sorted(set(list_methods()) - set(CASES))
    assert not missing, f"add an entry to CASES in tests/cases.py for: {', '.join(missing)}"
    assert set(CASES) == set(list_methods())


def test_the_fast_tier_meets_every_method_on_each_kind_and_every_family_often():
    for name, models in KEPT.items():
        for kind in KINDS:
            assert {(name, model) for model in kind} & FAST or not {*kind} & {*models}, f"{name} is not met"
    assert min(Counter(model for _, model in FAST)[model] for model in MODELS) >= LEAST >= 10
    assert len(FAST) < len([model for models in KEPT.values() for model in models]) / 2


def test_a_rotation_fills_up_a_family_that_many_refuse():
    subjects = {f"s{i}": ["a", "b"] if i < 12 else ["a"] for i in range(30)}
    pairs = rotated(subjects, [["a", "b"]])
    assert Counter(model for _, model in pairs) == {"a": 24, "b": 10}, "b has had 6 in its turn"
    few = rotated({f"s{i}": ["a", "b"] if i < 3 else ["a"] for i in range(4)}, [["a", "b"]])
    assert {name for name, model in few if model == "b"} == {"s0", "s1", "s2"}, "all that there are"


@pytest.mark.parametrize(("name", "model"), _slow_unless_fast())
def test_contract(name, model, tmp_path):
    """One test per pair, so that its short trainings are made once; every broken promise is named."""
    name, case = SUBJECTS[name]
    subject = Subject(list_methods()[name], case, model, tmp_path)
    broken = []
    for check in CHECKS:
        try:
            check(subject)
        except AssertionError as error:
            broken.append(f"{check.__name__}: {error}")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(("name", "model"), REFUSED)
def test_a_refusal_says_why(name, model, tmp_path):
    name, case = SUBJECTS[name]
    with pytest.raises(HFCompressError, match=case.refuses[model]):
        Subject(list_methods()[name], case, model, tmp_path).prepared(fresh(model))
