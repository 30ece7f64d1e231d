"""Every combination of what is installed works or says why not (promise 1 of the design).

The names come from the registry, so that a new plugin is walked without a change here. One test composes one process
with one objective in one prediction; inside, every backbone trains one step and every sampler draws, once for each
process on every time grid too. Presets of a backbone are saved, loaded and conditioned as all are. A refusal must be
an IncompatibleError that names both sides.
"""

from __future__ import annotations

import warnings
from typing import get_args

import pytest
import torch

from itoflow import (
    GaussianProcess,
    IncompatibleError,
    InputError,
    InterpolantProcess,
    ItoflowWarning,
    OptionError,
    TableSampler,
    compose,
    load,
    registry,
)
from itoflow.process import GridName
from itoflow.testing.problems import Straight

DATA = {"shape": (1, 8, 8), "std": 0.5}
SMALL = {
    "width": 16,
    "channels": 16,
    "base_channels": 16,
    "hidden": 32,
    "depth": 1,
    "multipliers": (1, 2),
    "attention": (4,),
    "heads": 2,
    "head_size": 8,
    "blocks": 1,
    "frequencies": 8,
}
GRIDS = get_args(GridName)
LARGEST = 5e6
"""No sample may be larger: a singular solve at alpha = 0 gives finite ones of 1e13. A regular one comes to 7e5, where
an untrained network is read as the velocity of `polynomial`, 500 times smaller than its noise at t_max."""


def predictions(objective):
    """What the option `prediction` of an objective may be, or None where it has none."""
    component = registry.registry().find("objective", objective).load()
    option = component.model_fields.get("prediction")
    return [None] if option is None else list(get_args(option.annotation)) or [None]


CASES = [
    (process, objective, prediction)
    for process in registry.available("process")
    for objective in registry.available("objective")
    for prediction in predictions(objective)
]


def loaded():
    """The backbones by name, but for those with an option that they require, such as a file."""
    found = {name: registry.registry().find("backbone", name).load() for name in registry.available("backbone")}
    return {name: b for name, b in found.items() if not any(f.is_required() for f in b.model_fields.values())}


def backbones():
    """All but presets, which derive from another one and change nothing but defaults."""
    found = loaded()
    others = set(found.values())
    return [name for name, backbone in found.items() if not others & set(backbone.__mro__[1:])]


def small(backbone):
    """The backbone with few parameters, as far as its options have the usual names."""
    component = registry.registry().find("backbone", backbone).load()
    options = {"name": backbone}
    for option, value in SMALL.items():
        if option in component.model_fields:
            try:
                component(**{k: v for k, v in options.items() if k != "name"}, **{option: value})
            except OptionError:
                continue
            options[option] = value
    return options


def composed(process, objective, prediction, backbone, data=DATA, **options):
    """The model, or None where `compose` refuses with a message that helps."""
    goal = {"name": objective} if prediction is None else {"name": objective, "prediction": prediction}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.manual_seed(0)
            model = compose(process=process, objective=goal, backbone=small(backbone), data=data, **options)
        except IncompatibleError as error:
            return helpful(error, process=process, objective=objective, backbone=backbone)
    lowered = [w for w in caught if issubclass(w.category, ItoflowWarning)]
    whole = registry.create("process", process).t_max
    assert bool(lowered) == (model.process.t_max < whole), "t_max is lowered with a warning, and never without"
    return model


def helpful(error, **parts):
    """A refusal names a component that was asked for, and what to use instead."""
    text = str(error)
    names = [registry.registry().find(kind, name).load().__name__ for kind, name in parts.items()]
    assert any(name in text for name in names), text
    assert any(word in text for word in ("Use ", "fit")), text


def scramble(model):
    """Networks start at zero; a test of one that says nothing would test nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))


def few(sampler):
    """steps=3 where the sampler has a number of steps."""
    try:
        sampler.with_steps(3)
    except InputError:
        return {}
    return {"steps": 3}


def start(model):
    """Two samples from noise, or from data where the far end is data."""
    if isinstance(model.process, InterpolantProcess):
        return {"x": torch.randn(2, *DATA["shape"], generator=torch.Generator().manual_seed(4))}
    return {"n": 2}


def draw(model, sampler, where):
    """Two samples, finite and of a sane size; or a refusal that helps."""
    try:
        x = model.sample(**start(model), sampler=sampler, generator=torch.Generator().manual_seed(2), **few(sampler))
    except IncompatibleError as error:
        helpful(error, process=where[0], sampler=where[4])
        return
    assert x.shape == (2, 1, 8, 8), where
    assert bool(torch.isfinite(x).all()), where
    assert float(x.abs().max()) < LARGEST, where


def draws(case, position):
    """Which (sampler, grid) draw from a case and its backbone in this position; grid None is the sampler's own.

    The first backbone: every sampler, and in the first case of each process every grid too. A sampler sees any other
    backbone through the same field, so there they take turns.
    """
    names = registry.available("sampler")
    if position:
        return [(names[(case + position) % len(names)], None)]
    first = case == next(i for i, (process, *_) in enumerate(CASES) if process == CASES[case][0])
    with_grid = [n for n in names if first and issubclass(registry.registry().find("sampler", n).load(), TableSampler)]
    return [(name, None) for name in names] + [(name, grid) for name in with_grid for grid in GRIDS]


@pytest.mark.parametrize(("process", "objective", "prediction"), CASES)
def test_every_combination_trains_and_samples_or_says_why_not(process, objective, prediction):
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    for i, backbone in enumerate(backbones()):
        model = composed(process, objective, prediction, backbone)
        if model is None:
            assert not issubclass(registry.registry().find("process", process).load(), GaussianProcess)
            continue
        scramble(model)
        far = {"x1": x.flip(0)} if isinstance(model.process, InterpolantProcess) else {}
        loss = model.loss(x, **far, generator=torch.Generator().manual_seed(1))
        assert loss.shape == (4,)
        assert bool(torch.isfinite(loss).all()), (process, objective, prediction, backbone)
        loss.mean().backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        assert gradients
        assert all(bool(torch.isfinite(g).all()) for g in gradients), (process, objective, prediction, backbone)
        for name, grid in draws(CASES.index((process, objective, prediction)), i):
            sampler = registry.create("sampler", name)
            chosen = sampler if grid is None else sampler.replace(grid=grid)
            draw(model, chosen, (process, objective, prediction, backbone, name, grid))


def diagonal():
    """Each component of each kind at least once."""
    kinds = [
        list(loaded()) if kind == "backbone" else registry.available(kind)
        for kind in ("process", "objective", "backbone", "sampler")
    ]
    return [tuple(names[i % len(names)] for names in kinds) for i in range(max(map(len, kinds)))]


@pytest.mark.parametrize(("process", "objective", "backbone", "sampler"), diagonal())
def test_a_saved_model_draws_the_same_samples(process, objective, backbone, sampler, tmp_path):
    prediction = "v" if "v" in predictions(objective) else None
    model = composed(process, objective, prediction, backbone, sampler=sampler)
    if model is None:
        return
    scramble(model)
    again = load(model.save(tmp_path / "model"))
    assert again.recipe == model.recipe
    options = few(registry.create("sampler", sampler))
    first, second = (
        m.sample(**start(m), generator=torch.Generator().manual_seed(3), **options) for m in (model, again)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("backbone", loaded())
def test_conditions_reach_every_backbone(backbone):
    """Under other conditions the same noise gives other samples. A backbone may refuse conditions, saying so."""
    process, objective, _, sampler = diagonal()[0]
    prediction = "v" if "v" in predictions(objective) else None
    data = {**DATA, "classes": 3, "vector": 2}
    model = composed(process, objective, prediction, backbone, data=data, sampler=sampler)
    if model is None:
        return
    scramble(model)
    options = few(registry.create("sampler", sampler))

    def sample(label, vector):
        cond = {"class": label, "vector": torch.tensor(vector)}
        return model.sample(2, cond, generator=torch.Generator().manual_seed(1), **options)

    base = sample(0, [0.0, 1.0])
    assert not torch.equal(base, sample(1, [0.0, 1.0]))
    assert not torch.equal(base, sample(0, [1.0, 1.0]))
    assert torch.equal(base, sample(0, [0.0, 1.0]))


class Faint(Straight):
    """alpha(1) is what rounding leaves, not 0: a solve there is finite and meaningless."""

    def alpha(self, t):
        return 1 - t + 1e-16


@pytest.mark.skipif(("eps" not in predictions(CASES[0][1])) if CASES else True, reason="no objective predicts eps")
def test_the_bound_on_samples_fires_where_t_max_is_not_lowered(monkeypatch):
    monkeypatch.setattr("itoflow.compatibility.SINGULAR", 0.0)
    objective = {"name": CASES[0][1], "prediction": "eps"}
    model = compose(process=Faint(), objective=objective, backbone=small(registry.available("backbone")[0]), data=DATA)
    scramble(model)
    with pytest.raises(AssertionError):
        draw(model, registry.create("sampler", registry.available("sampler")[0]), ("faint",))
