"""Small training pieces whose launches and bytes can be counted by hand.

pullback inspect benchmarks/fused.py --stage plan --function layer_norm
"""

import pullback as pb
from pullback import nn, optim

ROWS, WIDTH, CLASSES = 256, 384, 1000

norm = nn.LayerNorm(WIDTH)
linear = nn.Linear(WIDTH, 1536)


class Many(nn.Module):
    """50 parameters of two shapes."""

    def __init__(self):
        self.layers = nn.ModuleList([nn.Linear(96, 64) for _ in range(25)])


many = Many()
optimizer = optim.AdamW(many, lr=1e-3)


@pb.function(pb.f32[ROWS, WIDTH], pb.f32[ROWS, WIDTH])
def layer_norm(x, ct):
    """Forward, and the gradients of x, weight and bias."""
    y, pull = pb.vjp(lambda x, w, b: pb.functional_call(norm, {"weight": w, "bias": b}, x), x, norm.weight, norm.bias)
    return y, pull(ct)


@pb.function(pb.f32[ROWS, CLASSES], pb.i32[ROWS])
def cross_entropy(logits, label):
    """The loss and the gradient of the logits."""
    loss = nn.cross_entropy(logits, label)
    return loss, pb.grad(loss, logits)


@pb.function(pb.f32[8 * ROWS, CLASSES], pb.i32[8 * ROWS])
def cross_entropy_of_many(logits, label):
    loss = nn.cross_entropy(logits, label)
    return loss, pb.grad(loss, logits)


@pb.function(pb.f32[ROWS, WIDTH], pb.f32[ROWS, 1536])
def linear_gelu(x, ct):
    """gelu(x w' + b), and the gradients of x, w and b."""

    def forward(x, w, b):
        return nn.gelu(pb.functional_call(linear, {"weight": w, "bias": b}, x), approximate="tanh")

    y, pull = pb.vjp(forward, x, linear.weight, linear.bias)
    return y, pull(ct)


@pb.function([pb.f32[64, 96] if i % 2 == 0 else pb.f32[64] for i in range(50)])
def adamw(grads):
    """One update of 50 parameters, gradients given."""
    optimizer.update(grads)
