"""itoflow composes continuous-time generative models by name, from plugins.

Importing this package imports neither torch nor a plugin; each public name is imported at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "attention": "Attention AttentionCall second_order",
    "backbone": "Backbone DataSpec",
    "composition": "compose",
    "dynamics": "Dynamics ForwardSDE ProbabilityFlowODE ReverseSDE simulate",
    "errors": (
        "AmbiguousComponentError IncompatibleError InputError ItoflowError ItoflowWarning ModelFileError "
        "NumericalError OptionError PluginError SpecError UndefinedError UnknownComponentError"
    ),
    "field": "Field NetworkField",
    "hookspecs": "Registration hookimpl",
    "interpolant": "InterpolantKernel InterpolantProcess",
    "loop": "Step",
    "model": "GenerativeModel",
    "objective": "Objective PathObjective",
    "parametrization": "Parametrization",
    "prediction": "Prediction",
    "process": "GaussianProcess Kernel PathProcess PathSample ProcessSpec",
    "registry": "available create",
    "sampler": "Sampler TableSampler",
    "spec": "Spec",
    "storage": "load",
    "table": "Row Table",
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names.split()}

if TYPE_CHECKING:  # the same names for type checkers; a test holds the two lists equal
    from itoflow.attention import Attention as Attention
    from itoflow.attention import AttentionCall as AttentionCall
    from itoflow.attention import second_order as second_order
    from itoflow.backbone import Backbone as Backbone
    from itoflow.backbone import DataSpec as DataSpec
    from itoflow.composition import compose as compose
    from itoflow.dynamics import Dynamics as Dynamics
    from itoflow.dynamics import ForwardSDE as ForwardSDE
    from itoflow.dynamics import ProbabilityFlowODE as ProbabilityFlowODE
    from itoflow.dynamics import ReverseSDE as ReverseSDE
    from itoflow.dynamics import simulate as simulate
    from itoflow.errors import AmbiguousComponentError as AmbiguousComponentError
    from itoflow.errors import IncompatibleError as IncompatibleError
    from itoflow.errors import InputError as InputError
    from itoflow.errors import ItoflowError as ItoflowError
    from itoflow.errors import ItoflowWarning as ItoflowWarning
    from itoflow.errors import ModelFileError as ModelFileError
    from itoflow.errors import NumericalError as NumericalError
    from itoflow.errors import OptionError as OptionError
    from itoflow.errors import PluginError as PluginError
    from itoflow.errors import SpecError as SpecError
    from itoflow.errors import UndefinedError as UndefinedError
    from itoflow.errors import UnknownComponentError as UnknownComponentError
    from itoflow.field import Field as Field
    from itoflow.field import NetworkField as NetworkField
    from itoflow.hookspecs import Registration as Registration
    from itoflow.hookspecs import hookimpl as hookimpl
    from itoflow.interpolant import InterpolantKernel as InterpolantKernel
    from itoflow.interpolant import InterpolantProcess as InterpolantProcess
    from itoflow.loop import Step as Step
    from itoflow.model import GenerativeModel as GenerativeModel
    from itoflow.objective import Objective as Objective
    from itoflow.objective import PathObjective as PathObjective
    from itoflow.parametrization import Parametrization as Parametrization
    from itoflow.prediction import Prediction as Prediction
    from itoflow.process import GaussianProcess as GaussianProcess
    from itoflow.process import Kernel as Kernel
    from itoflow.process import PathProcess as PathProcess
    from itoflow.process import PathSample as PathSample
    from itoflow.process import ProcessSpec as ProcessSpec
    from itoflow.registry import available as available
    from itoflow.registry import create as create
    from itoflow.sampler import Sampler as Sampler
    from itoflow.sampler import TableSampler as TableSampler
    from itoflow.spec import Spec as Spec
    from itoflow.storage import load as load
    from itoflow.table import Row as Row
    from itoflow.table import Table as Table
else:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'itoflow' has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"itoflow.{_MODULES[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
