from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from itoflow_data import to_levels
from itoflow_data.digits import STD, Digits


def test_parts_are_the_published_split() -> None:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(1797)
    source = Digits(labels=True)
    for split, chosen in (("train", order[:1437]), ("test", order[1437:])):
        part = source.load(split)  # type: ignore[arg-type]
        part.check(source.spec)
        assert part.x.shape == (len(chosen), 1, 8, 8)
        assert np.array_equal(part.x.numpy().reshape(-1, 64), (-1 + 2 * images[chosen] / 16).astype(np.float32))
        assert np.array_equal(part.cond["class"].numpy(), labels[chosen])
        assert np.array_equal(to_levels(part.x, source.spec).numpy().reshape(-1, 64), images[chosen])
    assert len(source.load("train")) + len(source.load("test")) == 1797


def test_spec_is_that_of_the_data() -> None:
    x, spec = Digits().load("train").x, Digits().spec
    assert abs(float(x.double().std(correction=0)) - STD) < 1e-6
    assert spec.std == STD
    assert (float(x.min()), float(x.max())) == (spec.low, spec.high)
    assert torch.equal(to_levels(x, spec).unique(), torch.arange(17))
    assert spec.levels == 17


def test_labels_are_an_option() -> None:
    assert (Digits().spec.classes, Digits(labels=True).spec.classes) == (None, 10)
    assert not Digits().load("test").cond
    assert torch.equal(Digits().load("test").x, Digits(labels=True).load("test").x)
