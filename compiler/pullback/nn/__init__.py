"""`import pullback.nn`: see `pullback.dsl.nn`."""

from ..dsl.array import __all__ as _arrays
from ..dsl.instead import LAYERS, unknown
from ..dsl.nn import *  # noqa: F403
from ..dsl.nn import __all__  # noqa: F401
from . import functional, init  # noqa: F401

__getattr__ = unknown(__name__, LAYERS, pb=_arrays)
