"""The method of Dormand and Prince of order 8, with an embedded error estimate of order 7: thirteen evaluations a step.

References:
    High order embedded Runge-Kutta formulae (Prince and Dormand, 1981).
"""

from __future__ import annotations

from typing import ClassVar

from itoflow_ode.adaptive import AdaptiveSolver


class Dopri8(AdaptiveSolver):
    """Dormand-Prince 8(7): fewer evaluations than `dopri5` where tolerances are below some 1e-7."""

    method: ClassVar[str] = "dopri8"
