"""Train a digits artifact with the runtime alone: the compiler, llvmlite and networkx are not imported.

pullback build examples/digits.py -o digits.so --dim batch=64
python examples/train_digits.py digits.so
"""

import sys

import numpy as np
from sklearn.datasets import load_digits

import pullback_runtime as rt


def load_data():
    """Images f32[n, 64] in 0..1 and labels i32[n], in a fixed shuffled order: (train, held-out fifth)."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    held_out = len(labels) // 5
    return (images[held_out:], labels[held_out:]), (images[:held_out], labels[:held_out])


def main(path, epochs=40):
    (images, labels), (test_images, test_labels) = load_data()
    digits = rt.load(path, seed=0)
    rng = np.random.default_rng(1)
    for epoch in range(epochs):
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
    return accuracy


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/train_digits.py digits.so")
    main(sys.argv[1])
