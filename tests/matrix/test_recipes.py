"""Every shipped recipe names components that are installed, with options that they have, and trains a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itoflow_train.loop import build
from itoflow_train.recipe import read, shipped

PARAMETERS = {"cifar10-edm": 55.7e6, "cifar10-ddpmpp": 61.8e6}
"""As published: EDM, table 7; of score SDEs, the code."""


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """What recipes that need local files name, in small."""
    images = np.random.default_rng(0).integers(256, size=(4, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "cifar10.npz", x=images, x_test=images)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", shipped())
def test_a_recipe_builds_its_model_and_gets_a_loss(name):
    recipe = read(name)
    assert recipe.summary
    model = build(recipe)
    data = model.data
    x = torch.randn(2, *data.shape, generator=torch.Generator().manual_seed(0)) * data.std
    cond = {"class": torch.arange(2)} if data.classes else {}
    loss = model.loss(x, cond, generator=torch.Generator().manual_seed(1))
    assert bool(loss.isfinite().all())
    loss.mean().backward()
    assert any(bool((weight.grad != 0).any()) for weight in model.parameters() if weight.grad is not None)
    if name in PARAMETERS:
        count = sum(weight.numel() for weight in model.parameters())
        print(f"{name}: {count / 1e6:.2f} M parameters")
        assert abs(count / PARAMETERS[name] - 1) < 0.01


def test_recipes_of_local_files_say_how_to_get_them():
    with pytest.raises(Exception, match="apt-get install dataset-fashion-mnist"):
        read("fashion-mnist", ["data.path=nowhere"]).data.load("train")
    with pytest.raises(Exception, match=r"nowhere\.npz does not exist"):
        build(read("cifar10-edm", ["data.path=nowhere.npz"]))
