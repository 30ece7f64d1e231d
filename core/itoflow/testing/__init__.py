r"""The conformance kit: exact fields, and the checks that every component must pass, third-party ones too.

In a plugin's tests, one line per component:

    import pytest
    from itoflow.testing import checks

    @pytest.mark.parametrize("check", checks("process"))
    def test_vp(check):
        check(VP())

A check is a function of the component that raises AssertionError, saying what is wrong, where and by how much. The kit
imports torch and core alone, and no test framework.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from itoflow.parametrization import Parametrization
from itoflow.registry import kind_name
from itoflow.spec import Spec
from itoflow.testing import (
    attentions,
    backbones,
    interpolants,
    marginals,
    objectives,
    parametrizations,
    processes,
    samplers,
)
from itoflow.testing.assertions import check_options
from itoflow.testing.interpolants import InterpolantOracle
from itoflow.testing.oracles import GaussianOracle, MixtureOracle, OracleField
from itoflow.testing.samplers import fitted_order

__all__ = [
    "Check",
    "GaussianOracle",
    "InterpolantOracle",
    "MixtureOracle",
    "OracleField",
    "checks",
    "fitted_order",
    "run_checks",
]

Check = Callable[[Any], None]

_CHECKS: dict[str, tuple[Check, ...]] = {
    "process": (*processes.CHECKS, *interpolants.CHECKS, marginals.check_marginals),
    "objective": objectives.CHECKS,
    "backbone": backbones.CHECKS,
    "sampler": samplers.CHECKS,
    "attention": attentions.CHECKS,
    "parametrization": parametrizations.CHECKS,
}


def checks(kind: str) -> tuple[Check, ...]:
    """All checks of a kind of component; a kind without mathematics of its own has those of its options.

    Arguments:
        kind: `process`, `objective`, `backbone`, `sampler`, `attention`, `parametrization`, or another registered kind,
            or its plural.

    Raises:
        UnknownComponentError: there is no such kind.
    """
    return _CHECKS.get(kind if kind in _CHECKS else kind_name(kind), (check_options,))


def run_checks(component: Spec) -> list[tuple[str, Exception | None]]:
    """Run every check of the component's kind: the name of each, and what it raised or None.

    An exception other than AssertionError is a failure too: the component could not be checked.
    """
    kind = "parametrization" if isinstance(component, Parametrization) else component.kind
    results: list[tuple[str, Exception | None]] = []
    for check in checks(kind):
        try:
            check(component)
        except Exception as error:
            results.append((check.__name__, error))
        else:
            results.append((check.__name__, None))
    return results
