"""`pb.debug_print`: look at values inside of a compiled function."""

from __future__ import annotations

from string import Formatter

from ..errors import TraceError
from .array import asarray
from .control import iteration
from .tensor import Tensor
from .trace import require


def debug_print(text: str, *tensors) -> None:
    """Print after each step: `pb.debug_print("loss {} norm {:.3f}", loss, norm)`, formatted as by `str.format`.

    The values become hidden results of the function, so they are those at this point of the program.  Errors:
    `TraceError` outside of functions, in the body of a scan, or if the number of values is not that of the fields.
    """
    trace = require("debug_print is called")
    if iteration() is not None:
        raise TraceError("debug_print in the body of a scan: return the value as a y, and print what scan returns")
    fields = [field for _, field, _, _ in Formatter().parse(text) if field is not None]
    if len(fields) != len(tensors):
        raise TraceError(f"debug_print({text!r}): {len(fields)} fields but {len(tensors)} values")
    values = (t if isinstance(t, Tensor) else asarray(t) for t in tensors)
    trace.prints.append((text, tuple(Tensor(t.node) for t in values)))
