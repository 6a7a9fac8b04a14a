"""XOR, the smallest network that needs its hidden layer.

pullback build examples/xor.py -o xor.so && python examples/xor.py
"""

import pullback as pb
from pullback import nn, optim


class XOR(nn.Module):
    def __init__(self):
        self.hidden = nn.Linear(2, 8)
        self.out = nn.Linear(8, 1)

    def __call__(self, x):
        return self.out(pb.tanh(self.hidden(x)))[:, 0]


model = XOR()
optimizer = optim.Adam(model, lr=0.05)


@pb.function(pb.f32[4, 2], pb.f32[4], training=True)
def train(x, y):
    loss = nn.binary_cross_entropy_with_logits(model(x), y)
    optimizer.minimize(loss)
    return loss


@pb.function(pb.f32[4, 2])
def predict(x):
    return pb.sigmoid(model(x))


if __name__ == "__main__":
    import numpy as np

    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    y = np.array([0, 1, 1, 0], np.float32)
    xor = pb.build(train, predict)
    for step in range(301):
        loss = xor.train(x=x, y=y)
        if step % 100 == 0:
            print(f"step {step:4d}  loss {loss:.4f}")
    for row, p in zip(x, xor.predict(x=x), strict=True):
        print(f"{row[0]:.0f} xor {row[1]:.0f} = {p:.3f}")
