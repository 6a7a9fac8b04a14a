"""The workload `mlp` as a Pullback model script."""

from workloads import MLP

import pullback as pb
from pullback import nn, optim

d = MLP["dims"]
model = nn.Sequential(nn.Linear(d[0], d[1]), nn.ReLU(), nn.Linear(d[1], d[2]), nn.ReLU(), nn.Linear(d[2], d[3]))
optimizer = optim.Adam(model, lr=1e-3)


@pb.function(pb.f32[MLP["batch"], d[0]], pb.i32[MLP["batch"]], training=True)
def train(x, y):
    loss = nn.cross_entropy(model(x), y)
    optimizer.minimize(loss)
    return loss
