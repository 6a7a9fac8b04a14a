"""`import pullback.optim`: see `pullback.dsl.optim`."""

from .dsl.optim import *  # noqa: F403
from .dsl.optim import __all__  # noqa: F401
