"""Optimizers with torch.optim's names, defaults and formulas; schedules and clipping with optax's ideas."""

from .adam import Adam, AdamW
from .clip import clip_by_global_norm, clip_by_value, global_norm
from .optimizer import Optimizer
from .schedules import Schedule, constant, cosine, exponential, join, linear, step, warmup
from .sgd import SGD, Adagrad, RMSProp, RMSprop

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSProp",
    "RMSprop",
    "Schedule",
    "clip_by_global_norm",
    "clip_by_value",
    "constant",
    "cosine",
    "exponential",
    "global_norm",
    "join",
    "linear",
    "step",
    "warmup",
]
