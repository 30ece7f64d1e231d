"""Flow matching for itoflow: processes, the objective, and couplings, which other plugins can add.

Importing this package imports no torch; each public name is imported at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES = ("Coupling", "spread", "transport_cost")

if TYPE_CHECKING:  # the same names for type checkers; a test holds the two lists equal
    from itoflow_flow.coupling import Coupling as Coupling
    from itoflow_flow.coupling import spread as spread
    from itoflow_flow.coupling import transport_cost as transport_cost
else:

    def __getattr__(name: str) -> Any:
        if name not in _NAMES:
            raise AttributeError(f"module 'itoflow_flow' has no attribute {name!r}")
        globals()[name] = value = getattr(import_module("itoflow_flow.coupling"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
