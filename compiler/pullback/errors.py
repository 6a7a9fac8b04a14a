"""The compiler's exceptions: one small hierarchy."""

from __future__ import annotations


class PullbackError(Exception):
    """Base of everything that this package raises on purpose."""


class ScriptError(PullbackError):
    """A mistake in a model script: shapes, dtypes, names.  Says where, what was expected, what came."""

    def __init__(self, message: str, loc=None):
        if loc is None:
            from .graph.graph import current_loc

            loc = current_loc()
        self.loc = loc
        self.reason = message
        super().__init__(f"{loc.file}:{loc.line}: {message}")


class ShapeError(ScriptError):
    """Shapes that do not go together."""


class DTypeError(ScriptError):
    """Element types that do not go together."""


class TraceError(ScriptError):
    """Python that cannot be traced: data-dependent control flow, a parameter outside of a function."""


class UnknownAttribute(TraceError, AttributeError):
    """What other libraries' tensors or optimizers have and ours do not, with what to write instead."""


class VerifyError(PullbackError):
    """An IR that breaks its own rules: a bug of a pass, never of the user."""


class BuildError(PullbackError):
    """The build cannot go on: an unbound dimension, an unknown target, an option that makes no sense."""


class ScheduleError(PullbackError):
    """A schedule step whose preconditions (dependences, shapes, roles) do not hold: our bug, never the user's."""
