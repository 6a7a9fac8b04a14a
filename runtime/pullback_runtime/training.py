"""The fit loop: batches, progress, metrics, crash-safe checkpoints.

What a run does follows from the artifact, the data and the seed alone: samples are shuffled by (seed, epoch), a
checkpoint names the epoch and batch that come next, so a run that was killed goes on to the very same bits.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import DataError
from .files import write_atomically

STATE_FILE = "state.safetensors"


@dataclass
class History:
    """What a run did: one entry an epoch.  `resumed`: the epoch and batch at which it went on, or None."""

    loss: list[float] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    resumed: tuple[int, int] | None = None


def split(data: Mapping[str, np.ndarray], fraction: float, seed: int) -> tuple[dict, dict]:
    """(training, validation): `fraction` of the samples, chosen by the seed, are held out."""
    if not 0 <= fraction < 1:
        raise DataError(f"the validation fraction must be in 0 <= fraction < 1, got {fraction}")
    n = len(next(iter(data.values())))
    order = np.random.default_rng((seed, 0x5EED)).permutation(n)
    held_out, rest = order[: int(n * fraction)], order[int(n * fraction) :]
    return {k: v[rest] for k, v in data.items()}, {k: v[held_out] for k, v in data.items()}


def fit(
    program,
    data: Mapping[str, np.ndarray],
    *,
    epochs: int = 1,
    function: str = "train",
    validation: Mapping[str, np.ndarray] | None = None,
    evaluate: str | None = None,
    shuffle: bool = True,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 0,
    report: Callable[[str], None] = print,
    progress: bool = False,
) -> History:
    """Run `function` over the data, batch after batch; the last partial batch of each epoch is left out (and said so).

    data: input name -> array with the samples first.  checkpoint: a folder; state is written there atomically after every
    epoch and every `checkpoint_every` steps, and a run finds its place there again.  evaluate: the function for the
    validation data (default: `evaluate`, else `predict`); integer results are compared with the input left over
    (accuracy), floats give the mean squared error, a scalar is averaged as it is.
    """
    call = getattr(program, function)
    batch = call.batch_size
    n = len(next(iter(data.values())))
    batches = n // batch
    if batches == 0:
        raise DataError(f"{function} takes batches of {batch} samples, the data has only {n}")
    if n % batch:
        report(f"{n % batch} of {n} samples do not fill a batch of {batch} and are left out of each epoch")
    place = _Place(checkpoint, _fingerprint(program, data, seed, shuffle))
    epoch, at, total, history = place.resume(program)
    if history.resumed:
        report(f"resumed at epoch {epoch + 1}, batch {at + 1}")
    start = time.perf_counter()
    while epoch < epochs:
        order = np.random.default_rng((seed, epoch)).permutation(n) if shuffle else np.arange(n)
        for i in _ticks(range(at, batches), progress, f"epoch {epoch + 1}/{epochs}", batches, at):
            rows = order[i * batch : (i + 1) * batch]
            total += float(_loss(call(**{k: v[rows] for k, v in data.items()})))
            history.steps += 1
            if checkpoint_every and history.steps % checkpoint_every == 0 and i + 1 < batches:
                place.save(program, epoch, i + 1, total, history)
        history.loss.append(total / batches)
        line = f"epoch {epoch + 1}/{epochs}  loss {history.loss[-1]:.4f}"
        if validation is not None and len(next(iter(validation.values()))):
            history.validation.append(measure(program, validation, evaluate))
            line += "".join(f"  validation {k} {v:.4f}" for k, v in history.validation[-1].items())
        report(line)
        epoch, at, total = epoch + 1, 0, 0.0
        place.save(program, epoch, at, total, history)
    history.seconds = time.perf_counter() - start
    return history


def measure(program, data: Mapping[str, np.ndarray], function: str | None = None) -> dict[str, float]:
    """Metrics of a function that trains nothing, over all samples."""
    function = function or next((f for f in ("evaluate", "predict") if hasattr(program, f)), None)
    if function is None:
        return {}
    call = getattr(program, function)
    n, batch = len(next(iter(data.values()))), call.batch_size
    inputs = {k: data[k] for k in call.input_names if k in data}
    left = [v for k, v in data.items() if k not in inputs]
    results = []
    for i in range(0, n, batch):
        part = {k: v[i : i + batch] for k, v in inputs.items()}
        if len(next(iter(part.values()))) < batch and not call.padded:
            break
        results.append(np.asarray(call(**part)))
    if not results:
        return {}
    if results[0].ndim == 0:
        return {"loss": float(np.mean(results))}
    got = np.concatenate(results)
    if len(left) != 1 or (left[0].shape != got.shape and left[0].shape[: got.ndim] != got.shape):
        return {}
    want = left[0][: len(got)]
    if got.dtype.kind in "iub":
        return {"accuracy": float(np.mean(got == want))}
    return {"mse": float(np.mean((got - want) ** 2))}


def _loss(result) -> float:
    """The scalar of a step's result: the result, its `loss`, or its first element."""
    if isinstance(result, Mapping):
        result = result["loss"] if "loss" in result else next(iter(result.values()))
    elif isinstance(result, tuple | list):
        result = result[0]
    return np.asarray(result).mean()


def _ticks(steps, progress: bool, label: str, total: int, at: int):
    if not progress:
        return steps
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    return tqdm(steps, desc=label, total=total, initial=at, leave=False, unit="batch")


def _fingerprint(program, data: Mapping[str, np.ndarray], seed: int, shuffle: bool) -> str:
    """What a checkpoint belongs to: going on with other data or another model would be silent nonsense."""
    h = hashlib.sha256(f"{program.fingerprint} {seed} {shuffle}".encode())
    for k in sorted(data):
        a = np.ascontiguousarray(data[k])
        h.update(f"{k} {a.dtype} {a.shape}".encode())
        h.update(a.view(np.uint8).reshape(-1).data)
    return h.hexdigest()


@dataclass
class _Place:
    """A checkpoint folder: one file that holds the state and, as metadata, where the run stands."""

    folder: str | Path | None
    fingerprint: str

    @property
    def path(self) -> Path:
        return Path(self.folder) / STATE_FILE

    def save(self, program, epoch: int, batch: int, total: float, history: History) -> None:
        if self.folder is None:
            return
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        where = {
            "epoch": epoch,
            "batch": batch,
            "total": float(total).hex(),
            "steps": history.steps,
            "loss": history.loss,
            "validation": history.validation,
            "fingerprint": self.fingerprint,
        }
        write_atomically(self.path, lambda p: program.save(p, metadata={"pullback.run": json.dumps(where)}))

    def resume(self, program) -> tuple[int, int, float, History]:
        if self.folder is None or not self.path.exists():
            return 0, 0, 0.0, History()
        from .state import read_metadata

        text = read_metadata(self.path).get("pullback.run")
        if text is None:
            raise DataError(f"{self.path}: holds no training run (saved by something else?)")
        where = json.loads(text)
        if where["fingerprint"] != self.fingerprint:
            raise DataError(
                f"{self.path}: this checkpoint belongs to another artifact, other data or another seed; "
                "give another --checkpoint folder or remove it"
            )
        program.load_state(self.path)
        history = History(where["loss"], where["validation"], where["steps"], resumed=(where["epoch"], where["batch"]))
        return where["epoch"], where["batch"], float.fromhex(where["total"]), history
