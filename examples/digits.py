"""Handwritten digits (scikit-learn's 8x8 images) with a two-layer network.

pullback build examples/digits.py -o digits.so --dim batch=64
python examples/digits.py            # builds, trains on four fifths, shows the accuracy on the rest
"""

import pullback as pb
from pullback import nn, optim


class MLP(nn.Module):
    def __init__(self):
        self.hidden = nn.Linear(64, 128)
        self.out = nn.Linear(128, 10)

    def __call__(self, image):
        return self.out(pb.relu(self.hidden(image)))


model = MLP()
optimizer = optim.AdamW(model, lr=optim.cosine(3e-3, steps=1000, warmup=50))

batch = pb.dim("batch")


@pb.function(pb.f32[batch, 64], pb.i32[batch], training=True)
def train(image, label):
    loss = nn.cross_entropy(model(image), label)
    optimizer.minimize(loss)
    return loss


@pb.function(pb.f32[batch, 64])
def predict(image):
    return pb.argmax(model(image), axis=-1)


if __name__ == "__main__":
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from train_digits import main as train_digits

    from pullback.cli import main as pullback

    with TemporaryDirectory() as folder:
        artifact = Path(folder) / "digits.so"
        pullback(["build", __file__, "-o", str(artifact), "--dim", "batch=64"])
        train_digits(artifact)
