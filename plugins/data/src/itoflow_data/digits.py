"""Handwritten digits: 1797 images of 8 x 8 pixels with 17 levels of grey.

A value k in 0 ... 16 stands at -1 + 2 k / 16; 0 is background. In the order of
numpy.random.default_rng(0).permutation(1797) the first 1437 are the train part and the last 360 the test part.

References:
    `sklearn.datasets.load_digits`; Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (1998), the test
    part of the set at https://doi.org/10.24432/C50P49.
"""

from __future__ import annotations

import numpy as np
import torch

from itoflow import DataSpec
from itoflow_data.base import DataSource, Examples, Split, from_levels, split_index

N_TRAIN = 1437
STD = 0.7520737
"""The standard deviation of all values of the train part."""


class Digits(DataSource):
    """The digits of scikit-learn, from its installation: nothing is downloaded."""

    labels: bool = False
    """Label each example with its digit."""

    @property
    def spec(self) -> DataSpec:
        """(1, 8, 8) with 17 levels in [-1, 1]; ten classes where `labels` is on."""
        return DataSpec(shape=(1, 8, 8), classes=10 if self.labels else None, std=STD, levels=17, low=-1.0, high=1.0)

    def load(self, split: Split) -> Examples:
        """(1437, 1, 8, 8) or (360, 1, 8, 8).

        Raises:
            InputError: there is no such part.
        """
        index = split_index(split)
        from sklearn.datasets import load_digits  # takes a second, and `itoflow show` needs only the options

        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        chosen = order[N_TRAIN:] if index else order[:N_TRAIN]
        levels = torch.from_numpy(images[chosen].astype(np.int64)).view(-1, 1, 8, 8)
        cond = {"class": torch.from_numpy(labels[chosen].astype(np.int64))} if self.labels else {}
        return Examples(from_levels(levels, self.spec), cond)
