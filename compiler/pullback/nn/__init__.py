"""`import pullback.nn`: see `pullback.dsl.nn`."""

from .dsl.nn import *  # noqa: F403
from .dsl.nn import __all__  # noqa: F401
