"""Bits per dimension, dequantisation, and what tells values on levels from others."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from itoflow.backbone import DataSpec
from itoflow.errors import (
    InputError,
    ItoflowWarning,
)
from itoflow.likelihood import bits_per_dimension, dequantise, warn_if_discrete
from itoflow.testing.problems import seeded


class TestBits:
    """Equation (3) of `itoflow.likelihood`."""

    data = DataSpec(shape=(3, 2), levels=17, low=-1.0, high=1.0)

    def test_uniform_density_over_all_cells_is_log2_of_the_levels(self) -> None:
        volume = (2 * 17 / 16) ** 6
        log_prob = torch.full((4,), -math.log(volume), dtype=torch.float64)
        torch.testing.assert_close(bits_per_dimension(log_prob, self.data), torch.full_like(log_prob, math.log2(17)))

    def test_continuous_data_are_in_data_units(self) -> None:
        bits = bits_per_dimension(torch.tensor([6 * math.log(4)]), DataSpec(shape=(3, 2)))
        torch.testing.assert_close(bits, torch.tensor([-2.0]))

    def test_dequantised_values_stay_in_their_cells_and_fill_them(self) -> None:
        level = torch.randint(0, 17, (1000, 3, 2), generator=seeded(0))
        x = level / 8 - 1
        noisy = dequantise(x, self.data, seeded(1))
        offset = (noisy - x) * 8
        assert float(offset.abs().max()) <= 0.5 + 1e-5
        assert abs(float(offset.mean())) < 5 / 12**0.5 / 6000**0.5
        assert float(offset.var()) == pytest.approx(1 / 12, rel=0.05)
        assert torch.equal(noisy, dequantise(x, self.data, seeded(1)))

    def test_continuous_data_have_nothing_to_dequantise(self) -> None:
        with pytest.raises(InputError, match="nothing to dequantise"):
            dequantise(torch.zeros(1, 3, 2), DataSpec(shape=(3, 2)))


@pytest.mark.parametrize("levels", [2, 256, 65536])
def test_values_on_levels_are_told_from_dequantised_ones_in_float32(levels: int) -> None:
    data = DataSpec(shape=(64,), levels=levels)
    k = torch.randint(levels, (4, 64), generator=seeded(0))
    x = (data.low + (data.high - data.low) * k.double() / (levels - 1)).float()
    with pytest.warns(ItoflowWarning, match=f"lie on {levels} levels"):
        warn_if_discrete(x, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_discrete(dequantise(x, data, seeded(1)), data)
