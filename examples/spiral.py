"""Two spirals: a classic problem that a linear model cannot solve, with the decision boundary as a picture.

python examples/spiral.py            # writes spiral.png
"""

import pullback as pb
from pullback import nn, optim


class Spiral(nn.Module):
    def __init__(self):
        self.layers = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))

    def __call__(self, point):
        return self.layers(point)


model = Spiral()
optimizer = optim.Adam(model, lr=0.01)

batch = pb.dim("batch")


@pb.function(pb.f32[batch, 2], pb.i32[batch], training=True)
def train(point, label):
    loss = nn.cross_entropy(model(point), label)
    optimizer.minimize(loss)
    return loss


@pb.function(pb.f32[batch, 2])
def probability(point):
    return pb.softmax(model(point), axis=-1)[:, 1]


def load_data(n=200, noise=0.05):
    """Points f32[2n, 2] on two spirals and their class i32[2n]."""
    import numpy as np

    rng = np.random.default_rng(0)
    t = np.sqrt(rng.uniform(0.02, 1, n)) * 3 * np.pi
    arm = np.stack([np.cos(t), np.sin(t)], 1) * (t / (3 * np.pi))[:, None]
    points = np.concatenate([arm, -arm]) + rng.normal(0, noise / 2, (2 * n, 2))
    return points.astype(np.float32), np.repeat([0, 1], n).astype(np.int32)


def main(picture="spiral.png"):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    points, labels = load_data()
    spiral = pb.build(train, probability, dims={"batch": len(labels)})
    for step in range(1501):
        loss = spiral.train(point=points, label=labels)
        if step % 500 == 0:
            print(f"step {step:4d}  loss {loss:.4f}")
    accuracy = np.mean((spiral.probability(point=points) > 0.5) == labels)
    print(f"accuracy: {accuracy:.1%}")

    side = 200
    x, y = np.meshgrid(np.linspace(-1.2, 1.2, side), np.linspace(-1.2, 1.2, side))
    grid = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32)
    n = len(labels)
    p = np.concatenate([spiral.probability(point=grid[i : i + n]) for i in range(0, len(grid), n)])
    plt.figure(figsize=(5, 5))
    plt.contourf(x, y, p.reshape(side, side), levels=20, cmap="RdBu", alpha=0.8)
    plt.scatter(*points.T, c=labels, cmap="RdBu", edgecolors="k", s=12, linewidths=0.4)
    plt.title("Two spirals: the decision boundary")
    plt.savefig(picture, dpi=120)
    print(f"wrote {picture}")
    return accuracy


if __name__ == "__main__":
    main()
