"""What torch, numpy and JAX have and this package has not -> what to write instead, for messages."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from traceback import walk_tb
from typing import NoReturn

from ..errors import TraceError, UnknownAttribute
from ..graph.graph import Loc

_STATIC = "pb.where(mask, a, b): a shape cannot depend on values"
_SORTED = "pb.sort(x, descending=True) and pb.argsort, and take the first k"
_SLICES = "slices: x[:, :n], x[:, n:], or x.reshape"
_PRODUCT = "x @ y"
_NOTHING = "nothing: where a program runs is said when it is built and loaded"
_NO_GRAD = "pb.stop_gradient(x): only pb.grad and minimize make derivatives"
_ORDER = "pb.permute_dims(x, axes), x.T or x.mT"
_COMPILE = "@pb.function(specs): all of it is compiled"
_JACOBIAN = "pb.vjp(f, x) or pb.jvp(f, (x,), (t,)), its products with vectors"
_JOINED = "pb.concat(arrays, axis=0)"

METHODS = {
    "backward": "optimizer.minimize(loss), or pb.grad(loss, wrt)",
    "grad": "pb.grad(loss, wrt), an expression",
    "detach": "pb.stop_gradient(x)",
    "data": "pb.stop_gradient(x)",
    "requires_grad": "pb.grad(loss, wrt): it takes any float tensor",
    "requires_grad_": "pb.grad(loss, wrt): it takes any float tensor",
    "numpy": "the tensor itself: what a compiled function returns are numpy arrays",
    "cpu": "the tensor itself: what a compiled function returns are numpy arrays",
    "cuda": _NOTHING,
    "device": _NOTHING,
    "view": "x.reshape(shape)",
    "ravel": "x.flatten()",
    "transpose": "x.permute(axes), pb.permute_dims(x, axes), x.T or x.mT",
    "swapaxes": "x.permute(axes), pb.permute_dims(x, axes), x.T or x.mT",
    "t": "x.T",
    "expand": "pb.broadcast_to(x, shape)",
    "clone": "x itself: tensors do not change",
    "copy": "x itself: tensors do not change",
    "contiguous": "x itself: the compiler chooses layouts",
    "to": "x.astype(dtype)",
    "type": "x.astype(dtype)",
    "bool": "x.astype(pb.bool)",
    "matmul": "x @ y",
    "dim": "x.ndim",
    "numel": "x.size",
    "norm": "pb.sqrt(pb.sum(x * x))",
    "masked_fill": "pb.where(mask, value, x)",
    "at": "pb.where(mask, value, x) or pb.scatter_add",
    "copy_": "x.assign(value), for parameters and buffers",
}
"""Of tensors; further ones as functions."""

FUNCTIONS = {
    "array": "pb.asarray(x)",
    "tensor": "pb.asarray(x)",
    "from_numpy": "pb.asarray(x)",
    "cat": _JOINED,
    "concatenate": _JOINED,
    "hstack": _JOINED,
    "vstack": _JOINED,
    "split": _SLICES,
    "chunk": _SLICES,
    "transpose": _ORDER,
    "permute": _ORDER,
    "swapaxes": _ORDER,
    "unsqueeze": "pb.expand_dims(x, axis=...) or x[:, None]",
    "flatten": "x.flatten() or nn.flatten",
    "ravel": "x.flatten()",
    "index_select": "pb.take(x, indices, axis=...)",
    "scatter": "pb.scatter_add, or pb.where(mask, value, x)",
    "cumsum": "pb.cumulative_sum(x, axis=...)",
    "cumprod": "pb.cumulative_prod(x, axis=...)",
    "clamp": "pb.clip(x, min, max)",
    "amax": "pb.max(x, axis=...)",
    "amin": "pb.min(x, axis=...)",
    "topk": _SORTED,
    "top_k": _SORTED,
    "median": "pb.sort(x), and take the middle",
    "nonzero": _STATIC,
    "argwhere": _STATIC,
    "unique": _STATIC,
    "masked_select": _STATIC,
    "absolute": "pb.abs(x)",
    "power": "pb.pow(x, y)",
    "mul": "pb.multiply(x, y)",
    "sub": "pb.subtract(x, y)",
    "div": "pb.divide(x, y)",
    "true_divide": "pb.divide(x, y)",
    "mod": "pb.remainder(x, y)",
    "rsqrt": "1 / pb.sqrt(x)",
    "isclose": "pb.abs(x - y) <= tolerance",
    "mm": _PRODUCT,
    "bmm": _PRODUCT,
    "dot": _PRODUCT,
    "linalg": "pb.matmul, einsum, vecdot, outer: there are no decompositions",
    "float": "pb.f32, as in x.astype(pb.f32)",
    "double": "pb.f64, as in x.astype(pb.f64)",
    "half": "pb.f16, as in x.astype(pb.f16)",
    "int": "pb.i32, as in x.astype(pb.i32)",
    "long": "pb.i32, as in x.astype(pb.i32)",
    "rand": "pb.random.uniform(shape)",
    "randn": "pb.random.normal(shape)",
    "manual_seed": "seed= of pb.build, or of the loaded program",
    "no_grad": _NO_GRAD,
    "enable_grad": _NO_GRAD,
    "jit": _COMPILE,
    "compile": _COMPILE,
    "vmap": "a batch axis: layers and most functions take further axes in front",
    "pmap": "a batch axis: one program runs on one device",
    "cond": "pb.where(condition, a, b): both are computed",
    "switch": "pb.where(condition, a, b): both are computed",
    "while_loop": "pb.scan(f, init, length=n): the length is known when the program is built",
    "fori_loop": "pb.scan(f, init, length=n)",
    "map": "a batch axis, or pb.scan(f, init, xs)",
    "value_and_grad": "the loss and pb.grad(loss, wrt): nothing is computed twice",
    "custom_jvp": "pb.custom_vjp",
    "jacobian": _JACOBIAN,
    "jacrev": _JACOBIAN,
    "jacfwd": _JACOBIAN,
    "hessian": "pb.jvp(lambda x: pb.grad(f(x), x), (x,), (v,))[1], its product with a vector",
    "save": "program.save(path), once it is built",
    "load": "pullback_runtime.load(path), of a built program",
    "cuda": _NOTHING,
    "device": _NOTHING,
    **{f"arc{name}": f"pb.a{name}(x)" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    "arctan2": "pb.atan2(y, x)",
}
"""Of the package itself."""

_ATTENTION = "nn.Linear, q @ k.mT and nn.softmax"
_RECURRENT = "pb.scan over a step of nn.Linear"
_CONVOLUTION = "nn.Linear on patches (slices, or pb.take): there are no convolutions"
_POOLING = "pb.max or pb.mean over an axis of x.reshape(...)"
_CLIP = "clip=optim.clip_by_global_norm(1.0) of the optimizer"

LAYERS = {
    "Conv": _CONVOLUTION,
    "conv": _CONVOLUTION,
    "ConvTranspose": _CONVOLUTION,
    **dict.fromkeys(("MaxPool", "AvgPool", "AdaptiveAvgPool", "max_pool", "avg_pool"), _POOLING),
    **dict.fromkeys(("BatchNorm", "batch_norm"), "nn.LayerNorm, or a Module that keeps its statistics in buffers"),
    **dict.fromkeys(("GroupNorm", "InstanceNorm", "group_norm"), "nn.LayerNorm of x.reshape(...)"),
    **dict.fromkeys(("RMSNorm", "rms_norm"), "x / pb.sqrt(pb.mean(x * x, axis=-1, keepdims=True) + eps)"),
    "normalize": "x / pb.sqrt(pb.sum(x * x, axis=-1, keepdims=True))",
    **dict.fromkeys(("Dropout", "dropout"), "nn.Dropout"),
    **dict.fromkeys(
        ("MultiheadAttention", "scaled_dot_product_attention", "Transformer", "TransformerEncoderLayer"), _ATTENTION
    ),
    **dict.fromkeys(("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"), _RECURRENT),
    **dict.fromkeys(("BCELoss", "binary_cross_entropy"), "nn.binary_cross_entropy_with_logits, of the scores"),
    **dict.fromkeys(("KLDivLoss", "kl_div"), "nn.cross_entropy with probabilities as target (less their entropy)"),
    **dict.fromkeys(("ReLU6", "relu6", "Hardtanh", "hardtanh"), "pb.clip(x, min, max)"),
    "PReLU": "pb.where(x > 0, x, weight * x) with an nn.Parameter",
    "swish": "nn.silu",
    "Unflatten": "x.reshape(shape)",
    **dict.fromkeys(("ParameterList", "ParameterDict"), "a list or dict of nn.Parameter in an attribute"),
    "utils": _CLIP,
}
"""Of `nn` and `nn.functional`; entries without 1d, 2d, 3d at the end stand for all three."""

_SCHEDULE = "a schedule as lr=: optim.cosine(1e-3, steps=2000), step, linear, exponential, warmup, join"

OPTIMIZERS = {
    "lr_scheduler": _SCHEDULE,
    **dict.fromkeys(("StepLR", "LambdaLR", "ExponentialLR", "CosineAnnealingLR", "LinearLR", "OneCycleLR"), _SCHEDULE),
    **{name.lower(): f"optim.{name}" for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")},
    **dict.fromkeys(
        ("Adadelta", "Adafactor", "Adamax", "NAdam", "RAdam", "LBFGS", "Rprop", "Lion", "Muon", "lion"),
        "optim.AdamW, or a subclass of optim.Optimizer",
    ),
    "clip_grad_norm_": _CLIP,
    "apply_updates": "optimizer.minimize(loss), or optimizer.update(grads)",
}
"""Of `optim`."""


def unknown(module: str, table: Mapping[str, str], **elsewhere: Collection[str]) -> Callable[[str], NoReturn]:
    """A module's `__getattr__`, asked for what is not there: says what to write instead.

    elsewhere: the names that other modules have, by what scripts call these.
    """

    def __getattr__(name: str) -> NoReturn:
        instead = table.get(name) or table.get(re.sub(r"[123]d$", "", name))
        instead = next((f"{owner}.{name}" for owner, names in elsewhere.items() if name in names), instead)
        if instead is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name, obj=sys.modules[module])
        raise UnknownAttribute(f"{module} has no {name!r}; use {instead}")

    return __getattr__


_KEYWORDS = {
    "dim": "axis=",
    "dims": "axis=",
    "keepdim": "keepdims=",
    "unbiased": "correction=1 or 0",
    "ddof": "correction=",
}

_MISCALLED = re.compile(r"(?:Tensor\.)?(\w+)\(\) (?:got an unexpected keyword argument '(\w+)'|takes .* positional)")


@contextmanager
def calls_hinted() -> Iterator[None]:
    """`TypeError`s of calls that torch and numpy know become messages that say what to write."""
    try:
        yield
    except TypeError as error:
        hint = _hint(str(error))
        if hint is None:
            raise
        package = __name__.split(".")[0] + "."
        frames = list(walk_tb(error.__traceback__))
        outside = [f for f in frames if not f[0].f_globals["__name__"].startswith(package)]
        frame, line = (outside or frames)[-1]
        loc = Loc(frame.f_code.co_filename, line, frame.f_code.co_name)
        raise TraceError(f"{error}: {hint}", loc) from error


def _hint(message: str) -> str | None:
    from . import array

    if "does not support ufuncs" in message:
        return "numpy's functions do not take tensors; write pb.sin(x) for np.sin(x)"
    call = re.match(
        r"(?:Tensor\.)?(\w+)\(\) (?:got an unexpected keyword argument '(\w+)'|takes .* positional)", message
    )
    if call is None or not hasattr(array, call[1]):
        return None
    if call[2] is None:
        takes_axis = "axis" in signature(getattr(array, call[1])).parameters
        return "write axis= before the axis" if takes_axis else None
    return f"write {_KEYWORDS[call[2]]}" if call[2] in _KEYWORDS else None
