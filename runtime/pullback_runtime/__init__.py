"""Runs what Pullback compiled.  Needs numpy only; the compiler is not imported.

import pullback_runtime as rt

digits = rt.load("digits.so", seed=0)
loss = digits.train(image=x, label=y)
digits.save("weights.safetensors")
"""

from .errors import (
    ArgumentError,
    ArgumentShapeError,
    ArtifactError,
    CheckError,
    DataError,
    DeviceError,
    DeviceMemoryError,
    NotFiniteError,
    RuntimeFailure,
    StateError,
)
from .program import Program, inspect, load

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ArgumentShapeError",
    "ArtifactError",
    "CheckError",
    "DataError",
    "DeviceError",
    "DeviceMemoryError",
    "NotFiniteError",
    "Program",
    "RuntimeFailure",
    "StateError",
    "inspect",
    "load",
]
