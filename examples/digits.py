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


def load_data():
    """Images f32[n, 64] in 0..1 and labels i32[n], in a fixed shuffled order: (train, test)."""
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    held_out = len(labels) // 5
    return (images[held_out:], labels[held_out:]), (images[:held_out], labels[:held_out])


def main():
    import numpy as np

    (images, labels), (test_images, test_labels) = load_data()
    digits = pb.build(train, predict, dims={"batch": 64})
    rng = np.random.default_rng(1)
    for epoch in range(40):
        order = rng.permutation(len(labels))
        losses = []
        for i in range(0, len(order) - 63, 64):
            rows = order[i : i + 64]
            losses.append(digits.train(image=images[rows], label=labels[rows]))
        if epoch % 5 == 4:
            print(f"epoch {epoch + 1:2d}  loss {np.mean(losses):.4f}")
    guesses = [digits.predict(image=test_images[i : i + 64]) for i in range(0, len(test_labels), 64)]
    accuracy = np.mean(np.concatenate(guesses) == test_labels)
    print(f"accuracy on the held-out fifth: {accuracy:.1%}")


if __name__ == "__main__":
    main()
