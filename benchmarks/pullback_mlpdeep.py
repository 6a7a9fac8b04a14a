"""The workload `mlpdeep` as a Pullback model script; `-- --layers N` changes its depth."""

import argparse

from workloads import MLPDEEP

import pullback as pb
from pullback import nn, optim

parser = argparse.ArgumentParser()
parser.add_argument("--layers", type=int, default=MLPDEEP["layers"])
layers = parser.parse_args().layers
width, batch = MLPDEEP["width"], MLPDEEP["batch"]


class Residual(nn.Module):
    def __init__(self):
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def __call__(self, x):
        return x + nn.gelu(self.linear(self.norm(x)), approximate="tanh")


model = nn.Sequential(*[Residual() for _ in range(layers)])
optimizer = optim.Adam(model, lr=1e-3)


@pb.function(pb.f32[batch, width], pb.i32[batch], training=True)
def train(x, y):
    loss = nn.cross_entropy(model(x), y)
    optimizer.minimize(loss)
    return loss
