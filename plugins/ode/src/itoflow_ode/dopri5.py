"""The method of Dormand and Prince of order 5, with an embedded error estimate of order 4: six evaluations a step.

References:
    A family of embedded Runge-Kutta formulae (Dormand and Prince, 1980), table 2.
"""

from __future__ import annotations

from typing import ClassVar

from itoflow_ode.adaptive import AdaptiveSolver


class Dopri5(AdaptiveSolver):
    """Dormand-Prince 5(4): the usual choice, also for likelihoods."""

    method: ClassVar[str] = "dopri5"
