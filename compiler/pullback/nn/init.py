"""`import pullback.nn.init`: see `pullback.dsl.nn.init`."""

from ..dsl.nn.init import *  # noqa: F403
from ..dsl.nn.init import __all__  # noqa: F401
