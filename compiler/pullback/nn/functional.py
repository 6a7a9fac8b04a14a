"""`import pullback.nn.functional as F`: see `pullback.dsl.nn.functional`."""

from ..dsl.array import __all__ as _arrays
from ..dsl.instead import LAYERS, unknown
from ..dsl.nn import __all__ as _layers
from ..dsl.nn.functional import *  # noqa: F403
from ..dsl.nn.functional import __all__  # noqa: F401

__getattr__ = unknown(__name__, LAYERS, pb=_arrays, nn=_layers)
