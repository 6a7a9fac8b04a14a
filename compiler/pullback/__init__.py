"""Pullback: a static-graph compiler for differentiable programs.  `import pullback as pb` in a model script.

Tensors and array functions (the array API standard's names), `pb.function`, `pb.dim`, `pb.hyper`, derivatives, `pb.nn`
and `pb.optim`; `pb.build` compiles and loads.
"""

# ruff: noqa: F401

from math import e, inf, nan, pi

from .autodiff import custom_vjp, grad, jvp, stop_gradient, vjp
from .config import Options
from .dsl import rng as random
from .dsl.array import *  # noqa: F403
from .dsl.control import scan
from .dsl.debug import debug_print
from .dsl.functions import function
from .dsl.hyper import hyper
from .dsl.instead import FUNCTIONS as _FUNCTIONS
from .dsl.instead import unknown as _unknown
from .dsl.nn.activations import (
    elu,
    gelu,
    leaky_relu,
    log_softmax,
    logsigmoid,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
)
from .dsl.nn.module import functional_call
from .dsl.pytree import tree_leaves, tree_map
from .dsl.state import Buffer, Parameter
from .errors import BuildError, PullbackError, ScriptError, TraceError, VerifyError
from .graph.types import DTYPES, Dim, DType, Spec, bf16, f16, f32, f64, i8, i32, i64, u8, u32
from .graph.types import bool_ as bool

from . import nn, optim  # isort: skip

__version__ = "0.1.0"

newaxis = None
float64, float32, bfloat16, float16 = f64, f32, bf16, f16
int64, int32, int8, uint32, uint8 = i64, i32, i8, u32, u8

__getattr__ = _unknown(__name__, _FUNCTIONS, nn=nn.__all__, optim=optim.__all__)


def dim(name: str) -> Dim:
    """A named dimension of arguments, bound when the program is built: `batch = pb.dim("batch")`, `--dim batch=64`."""
    if not name.isidentifier():
        raise BuildError(f"dim({name!r}): expected a name such as 'batch'")
    return Dim(name)


def build(*functions, dims=None, output=None, seed=0, threads=None, device=None, **options):
    """Compile `@pb.function`s and load them: `pb.build(train, predict, dims={"batch": 64})`.

    dims: "batch" or "predict.batch" -> a size, or several.
    output: where to write the artifact; by default it is in memory only.
    seed, threads, device: as in `pullback_runtime.load`.  options: the fields of `pb.Options`.
    Returns a `pullback_runtime.Program`.
    """
    from .driver import build

    return build(*functions, dims=dims, output=output, seed=seed, threads=threads, device=device, **options)
