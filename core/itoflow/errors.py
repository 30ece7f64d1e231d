"""Errors for people: each says what was asked, what exists, and what to do next.

Every error that itoflow raises on purpose derives from `ItoflowError`; the command line prints its text alone.
"""

from __future__ import annotations

from collections.abc import Iterable


class ItoflowWarning(UserWarning):
    """Base of every warning: something was changed or dropped, visibly, so that the composition works."""


class ItoflowError(Exception):
    """Base of every error raised by itoflow and its plugins."""


class UnknownComponentError(ItoflowError, LookupError):
    """No installed component of that kind has that name."""


class AmbiguousComponentError(ItoflowError, LookupError):
    """Two distributions own the name; write `distribution:name`."""


class PluginError(ItoflowError):
    """A plugin's declaration or a component's module cannot be used."""


class OptionError(ItoflowError, ValueError):
    """An option is unknown, of the wrong type, or out of its range."""


class SpecError(ItoflowError, TypeError):
    """A component class breaks the contract of its interface."""


class IncompatibleError(ItoflowError, ValueError):
    """Components that cannot work together; raised before any tensor is made."""


class InputError(ItoflowError, ValueError):
    """Data, conditions, counts or times that the model cannot accept."""


class UndefinedError(ItoflowError):
    """A quantity was asked for that this process and prediction do not determine."""


class NumericalError(ItoflowError, ArithmeticError):
    """A value that must be finite is not; names the component, the time and the step."""


class ModelFileError(ItoflowError):
    """A saved model is missing, damaged, of a newer format, or needs a plugin that is absent."""


def listing(names: Iterable[str]) -> str:
    """The names, sorted and joined for a message; `none` when there are none."""
    return ", ".join(sorted(names)) or "none"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """` Did you mean 'vp'?` for the closest of `names`, or an empty string."""
    import difflib  # only where something is misspelt

    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
