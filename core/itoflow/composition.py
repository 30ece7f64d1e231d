"""Composition: from four names and a data spec to a model that trains and samples.

What cannot work together is refused here, before a network is built, with who needs what and which installed
components would fit (`itoflow.compatibility`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from itoflow import registry
from itoflow.backbone import Backbone, DataSpec
from itoflow.compatibility import check_direction, check_objective, check_sampler, check_scale, solvable
from itoflow.errors import OptionError, SpecError, did_you_mean, listing
from itoflow.field import NetworkField
from itoflow.interpolant import InterpolantProcess
from itoflow.model import GenerativeModel, Part
from itoflow.objective import Objective
from itoflow.parametrization import Parametrization
from itoflow.process import ProcessSpec
from itoflow.sampler import Sampler


def compose(
    *,
    process: Part | ProcessSpec,
    objective: Part | Objective,
    backbone: Part | Backbone,
    data: DataSpec | tuple[int, ...] | Mapping[str, Any],
    sampler: Part | Sampler | None = None,
    **data_options: Any,
) -> GenerativeModel:
    """Build a model from components, each a name, `distribution:name`, a mapping with `name`, or an object.

    Arguments:
        data: a `DataSpec`, its fields as a mapping, or just the shape of one example, e.g. (1, 8, 8).
        sampler: what `sample` uses by default; None leaves the choice to each call, and then to `auto`.
        **data_options: further fields of the data spec, e.g. classes=10.

    Where the prediction cannot be solved at the process's t_max (noise determines no data where no signal is left),
    t_max is lowered, with an `ItoflowWarning`; `model.process` shows the value used. Noise that does not suit the
    data's standard deviation gives an `ItoflowWarning` too.

    Example:
        >>> import itoflow
        >>> model = itoflow.compose(process="vp", objective="dsm", backbone="mlp", sampler="heun", data=(2,))
        >>> model.sample(3, steps=2).shape
        torch.Size([3, 2])

    Raises:
        UnknownComponentError, AmbiguousComponentError: a name that is not installed, or has two owners.
        OptionError: a wrong option, of a component or of the data spec.
        IncompatibleError: components that cannot work together; names who needs what and what would fit.
        SpecError: a component breaks the contract of its kind: time that runs backwards, a network that is no module.
    """
    path: ProcessSpec = registry.resolve("process", process)
    goal: Objective = registry.resolve("objective", objective)
    network: Backbone = registry.resolve("backbone", backbone)
    steps: Sampler | None = None if sampler is None else registry.resolve("sampler", sampler)
    spec = _data_spec(data, data_options)

    check_objective(goal, path)
    check_direction(path)
    parametrization = goal.parametrization(path, spec)
    if not isinstance(parametrization, Parametrization):
        raise SpecError(
            f"{type(goal).__name__}.parametrization gives an itoflow.Parametrization. Given: {parametrization!r}."
        )
    if not network.scale_input:
        parametrization = parametrization.replace(scale_input=False)
    path = solvable(path, parametrization)
    check_scale(path, spec)
    if steps is not None:
        check_sampler(steps, path, parametrization)
    net = network.build(_built_for(spec, path, parametrization))
    if not isinstance(net, nn.Module):
        raise SpecError(f"{type(network).__name__}.build gives a torch.nn.Module. Given: {net!r}.")
    return GenerativeModel(path, goal, network, steps, spec, NetworkField(net, path, parametrization))


def _data_spec(data: DataSpec | tuple[int, ...] | Mapping[str, Any], options: Mapping[str, Any]) -> DataSpec:
    unknown = sorted(set(options) - set(DataSpec.model_fields))
    if unknown:
        known = ["process", "objective", "backbone", "sampler", "data", *DataSpec.model_fields]
        raise OptionError(
            f"compose takes no {unknown[0]!r}.{did_you_mean(unknown[0], known)} Besides components and data it takes "
            f"the fields of the data spec: {listing(DataSpec.model_fields)}."
        )
    if isinstance(data, DataSpec):
        return data.replace(**options) if options else data
    if isinstance(data, Mapping):
        return DataSpec(**{**data, **options})
    if isinstance(data, (tuple, list, torch.Size)):
        return DataSpec(**{"shape": tuple(data), **options})
    raise OptionError(
        f"data is a DataSpec, its fields as a mapping, or the shape of one example, e.g. (1, 8, 8). Given: {data!r}."
    )


def _built_for(spec: DataSpec, process: ProcessSpec, parametrization: Parametrization) -> DataSpec:
    """What the network is built for: data twice as large along the first axis where it has two heads."""
    if not (isinstance(process, InterpolantProcess) and parametrization.score):
        return spec
    return spec.replace(shape=(2 * spec.shape[0], *spec.shape[1:]))
