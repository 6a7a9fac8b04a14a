"""`import pullback.optim`: see `pullback.dsl.optim`."""

from .dsl.instead import OPTIMIZERS, unknown
from .dsl.optim import *  # noqa: F403
from .dsl.optim import __all__  # noqa: F401

__getattr__ = unknown(__name__, OPTIMIZERS)
