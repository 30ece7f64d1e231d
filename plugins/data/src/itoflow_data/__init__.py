"""Named data sets for itoflow, and the interface by which other plugins add theirs.

Importing this package imports no torch; each public name is imported at first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES = (
    "Bijection",
    "DataSource",
    "Examples",
    "Split",
    "Transformed",
    "from_levels",
    "load_dataset",
    "split_index",
    "split_indices",
    "to_levels",
)

if TYPE_CHECKING:  # the same names for type checkers; a test holds the two lists equal
    from itoflow_data.base import Bijection as Bijection
    from itoflow_data.base import DataSource as DataSource
    from itoflow_data.base import Examples as Examples
    from itoflow_data.base import Split as Split
    from itoflow_data.base import Transformed as Transformed
    from itoflow_data.base import from_levels as from_levels
    from itoflow_data.base import load_dataset as load_dataset
    from itoflow_data.base import split_index as split_index
    from itoflow_data.base import split_indices as split_indices
    from itoflow_data.base import to_levels as to_levels
else:

    def __getattr__(name: str) -> Any:
        if name not in _NAMES:
            raise AttributeError(f"module 'itoflow_data' has no attribute {name!r}")
        globals()[name] = value = getattr(import_module("itoflow_data.base"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
