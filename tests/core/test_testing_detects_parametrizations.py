"""Every detector of parametrizations fires on one that is broken in one way, and says what is wrong."""

from __future__ import annotations

import pytest
import torch

from itoflow import (
    Parametrization,
)
from itoflow.process import Kernel
from itoflow.testing import parametrizations


class Shifted(Parametrization):
    """Claims to be one pair and solves another where noise dominates."""

    def coefficients(self, k: Kernel):
        a, b = super().coefficients(k)
        return (a * torch.nan, b) if self.prediction == "v" else (a, b)

    def input_scale(self, k: Kernel):
        return (k.sigma.square() + k.alpha * self.data_std**2).rsqrt()


@pytest.mark.parametrize("check", ["check_round_trip", "check_solution", "check_no_signal"])
def test_parametrization_detector_fires_on_coefficients_that_are_not_finite(check):
    with pytest.raises((AssertionError, torch.linalg.LinAlgError)):
        getattr(parametrizations, check)(Shifted(prediction="v"))


def test_parametrization_detector_fires_on_the_input_scale():
    with pytest.raises(AssertionError, match="input_scale"):
        parametrizations.check_input_scale(Shifted(prediction="x0"))
