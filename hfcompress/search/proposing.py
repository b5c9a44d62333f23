"""What to try next: optuna's samplers over a recipe's values, told of every trial so far."""

from __future__ import annotations

import json
from typing import Any

from ..core.errors import HFCompressError
from ..measure.cells import State
from ..measure.trials import SearchRecord, Trial
from ..recipe.search import Params, Range, Search, Values

# Proposals of what was tried before, after which any combination is taken, and after which no new one is expected.
_PATIENCE, _ATTEMPTS = 50, 1000


class Proposer:
    """Proposes a combination by the tree-structured Parzen estimator for two objectives (Ozaki 2022, MOTPE).

    It is made anew for each trial, from the record alone: a search that was interrupted goes on as if it had not been.
    """

    def __init__(self, search: Search, record: SearchRecord, seed: int) -> None:
        self._optuna = require_optuna()
        self._space = {key: _distribution(self._optuna, values) for key, values in search.space.items()}
        quality = "maximize" if record.higher_is_better else "minimize"
        cost = "minimize" if record.lower_cost_is_better else "maximize"
        self._seed = seed + len(record.trials)
        sampler = self._optuna.samplers.TPESampler(seed=self._seed)
        self._study = self._optuna.create_study(directions=[quality, cost], sampler=sampler)
        self._known: set[str] = set()
        for trial in record.trials:
            self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        self._known.add(_key(trial.params))
        state = self._optuna.trial.TrialState
        done = trial.state is State.DONE
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=state.COMPLETE if done else state.FAIL,
                params=trial.params,
                distributions=self._space,
                values=[trial.value, trial.cost] if done else None,
            )
        )

    def ask(self) -> Params | None:
        """Return a combination that was not tried yet; None where it seems that all were."""
        for attempt in range(_ATTEMPTS):
            if attempt == _PATIENCE:
                self._study.sampler = self._optuna.samplers.RandomSampler(seed=self._seed)
            asked = self._study.ask(self._space)
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)  # what comes of it is added by `tell`
            params = {key: _written(asked.params[key]) for key in self._space}
            if _key(params) not in self._known:
                return params
        return None


def _written(value: Any) -> Any:
    """Return a value as people write it: low + 3 * step is 0.25, not 0.25000000000000006."""
    return round(value, 10) if isinstance(value, float) else value


def _key(params: Params) -> str:
    return json.dumps(params, sort_keys=True)


def _distribution(optuna: Any, values: Values) -> Any:
    kinds = optuna.distributions
    if not isinstance(values, Range):
        return kinds.CategoricalDistribution(values)
    numbers = (values.low, values.high, *([] if values.step is None else [values.step]))
    if all(isinstance(number, int) for number in numbers):
        return kinds.IntDistribution(values.low, values.high, log=values.log, step=values.step or 1)
    return kinds.FloatDistribution(values.low, values.high, log=values.log, step=values.step)


def require_optuna() -> Any:
    """Return the library; HFCompressError says how to install it where it is missing."""
    try:
        import optuna
    except ImportError as error:
        raise HFCompressError(
            'a search needs optuna, which is not installed: pip install "hfcompress[search]"'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
