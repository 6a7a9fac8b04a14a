"""What this package raises on purpose.  Each is also the builtin exception that callers would expect."""

from __future__ import annotations


class RuntimeFailure(Exception):
    """Base of everything that this package raises on purpose."""


class ArtifactError(RuntimeFailure, ValueError):
    """A file that is no artifact, is damaged, or was built for another machine or version."""


class ArgumentError(RuntimeFailure, TypeError):
    """Missing, unknown or wrongly typed inputs of a function."""


class ArgumentShapeError(ArgumentError, ValueError):
    """An input whose shape the function was not compiled for."""


class CheckError(RuntimeFailure, IndexError):
    """An index that was out of range during a step.  State is as it was before the step."""


class NotFiniteError(RuntimeFailure, FloatingPointError):
    """A watched value was not finite.  State is as it was before the step."""


class StateError(RuntimeFailure, ValueError):
    """A state file that does not fit the program."""


class DataError(RuntimeFailure, ValueError):
    """A data file that cannot be read, or data that does not fit a function's inputs."""


class DeviceError(RuntimeFailure, RuntimeError):
    """A GPU, its driver or the package that speaks to it is missing, too old, or failed."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A program needs more memory than its GPU has left."""
