"""What derivative rules are written in: the DSL's array functions, looked up when a rule runs.

Ops import this module, the DSL imports the ops: forwarding each name on first use breaks the circle.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    from ..dsl import array

    value = getattr(array, name)
    globals()[name] = value
    return value
