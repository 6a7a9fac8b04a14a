"""The fit loop: batches, progress, metrics, crash-safe checkpoints.

What a run does follows from the artifact, the data and the seed alone: samples are shuffled by (seed, epoch), and a
checkpoint says which epoch and batch come next, so a run that was killed goes on to the very same bits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import DataError
from .files import check_writable
from .function import Function
from .program import Program
from .state import read_metadata, require_safetensors

STATE_FILE = "state.safetensors"
"""The one file of a checkpoint folder; `Program.load_state` reads it too."""

RUN = "pullback.run"
"""The metadata of that file that says where the run stands."""


@dataclass
class History:
    """What a run did: one entry an epoch.  `resumed`: the epoch and batch (from 0) at which it went on, or None."""

    loss: list[float] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    resumed: tuple[int, int] | None = None


def split(data: Mapping[str, np.ndarray], fraction: float, seed: int) -> tuple[dict, dict]:
    """(training, validation): `fraction` of the samples, chosen by the seed, are held out."""
    if not 0 <= fraction < 1:
        raise DataError(f"the validation fraction must be at least 0 and less than 1, got {fraction}")
    n = len(next(iter(data.values())))
    order = np.random.default_rng((seed, 0x5EED)).permutation(n)
    held_out, rest = order[: int(n * fraction)], order[int(n * fraction) :]
    return {k: v[rest] for k, v in data.items()}, {k: v[held_out] for k, v in data.items()}


def fit(
    program: Program,
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

    data: input name -> array with the samples along the first axis.  checkpoint: a folder; state is written there,
    atomically and durably, after every epoch and every `checkpoint_every` steps, and a run finds its place there again.
    evaluate: the function for the validation data (default: `evaluate`, else `predict`); see `measure`.
    DataError if the function trains nothing: its result is no scalar loss, or its first epoch changes no state.
    """
    call = _function(program, function)
    batch, n = _batch_size(call), _samples(call, data)
    _check_loss(call)
    batches = n // batch
    if batches == 0:
        raise DataError(f"{function} takes batches of {batch} samples, the data has only {n}")
    if n % batch:
        report(f"{n % batch} of {n} samples do not fill a batch of {batch} and are left out of each epoch")
    with _place(checkpoint, _fingerprint(program, data, function, seed, shuffle)) as place:
        epoch, at, total, history = place.resume(program)
        if history.resumed:
            report(f"resumed at epoch {epoch + 1}, batch {at + 1}")
        start = time.perf_counter()
        untrained = None if call.bindings[0].entry.training else _digest(program)
        while epoch < epochs:
            order = np.random.default_rng((seed, epoch)).permutation(n) if shuffle else np.arange(n)
            for i in _shown(range(at, batches), progress, f"epoch {epoch + 1}/{epochs}", batches, at):
                rows = order[i * batch : (i + 1) * batch]
                total += _loss(call(**call.keywords({k: v[rows] for k, v in data.items()})))
                history.steps += 1
                if checkpoint_every and history.steps % checkpoint_every == 0 and i + 1 < batches:
                    place.save(program, epoch, i + 1, total, history)
            if untrained is not None and untrained == _digest(program):
                raise DataError(f"{function} trains nothing: after an epoch all state is as it was")
            untrained = None
            history.loss.append(total / batches)
            line = f"epoch {epoch + 1}/{epochs}  loss {history.loss[-1]:.4f}"
            if validation is not None:
                history.validation.append(measure(program, validation, evaluate))
                line += "".join(f"  validation {k} {v:.4f}" for k, v in history.validation[-1].items())
            report(line)
            epoch, at, total = epoch + 1, 0, 0.0
            place.save(program, epoch, at, total, history)
        history.seconds = time.perf_counter() - start
    return history


def measure(program: Program, data: Mapping[str, np.ndarray], function: str | None = None) -> dict[str, float]:
    """Metrics of a function that trains nothing, over all samples.

    What it computes is compared with the one array of `data` that is not its input: integers give the accuracy,
    floats the mean squared error.  A scalar result is a loss, averaged over batches.  Empty where there is nothing
    to compare; a last batch that is too small is left out if the function cannot take it.
    """
    if function is None:
        function = next((f for f in ("evaluate", "predict") if f in program.functions), None)
        if function is None:
            return {}
    call = _function(program, function)
    n, batch = _samples(call, data), _batch_size(call)
    inputs = {k: data[k] for k in call.sample_shapes}
    left = [v for k, v in data.items() if k not in inputs]
    results = []
    for i in range(0, n, batch):
        if n - i < batch and not call.padded:
            break
        results.append(call(**call.keywords({k: v[i : i + batch] for k, v in inputs.items()})))
    if not results or not isinstance(results[0], np.ndarray):
        return {}
    if results[0].ndim == 0:
        return {"loss": float(np.mean(results))}
    got = np.concatenate(results)
    if len(left) != 1 or (want := left[0][: len(got)]).shape != got.shape:
        return {}
    if got.dtype.kind in "iub":
        return {"accuracy": float(np.mean(got == want))}
    return {"mse": float(np.mean((got.astype(np.float64) - want) ** 2))}


def _function(program: Program, name: str) -> Function:
    if name not in program.functions:
        raise DataError(
            f"{program.path or program.manifest.name} has no function {name!r}: it has {', '.join(program.functions)}"
        )
    return program.functions[name]


def _batch_size(call: Function) -> int:
    """The leading dimension of all inputs, of the largest binding."""
    leading = {a.name: a.shape[:1] for b in call.bindings for a in b.entry.arguments}
    if not all(leading.values()) or any(len({a.shape[0] for a in b.entry.arguments}) != 1 for b in call.bindings):
        raise DataError(
            f"{call.name} cannot be fed batches: its inputs need the samples along their first axis, but it takes "
            + "; ".join(b.signature() for b in call.bindings)
        )
    return call.batch_size


def _samples(call: Function, data: Mapping[str, np.ndarray]) -> int:
    missing = [n for n in call.sample_shapes if n not in data]
    if missing:
        raise DataError(f"{call.name}: no data for input {', '.join(map(repr, missing))}; there is {', '.join(data)}")
    lengths = {k: len(v) for k, v in data.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"{call.name}: inputs have different numbers of samples: {lengths}")
    return next(iter(lengths.values()))


def _check_loss(call: Function) -> None:
    """Refuse a function whose result, where `_loss` looks, is no scalar."""
    entry = call.bindings[0].entry
    tree = entry.outputs
    while isinstance(tree, dict):
        ((kind, items),) = tree.items()
        if not items:
            return
        tree = items.get("loss", next(iter(items.values()))) if kind == "dict" else items[0]
    if tree is not None and (loss := entry.results[tree]).shape != ():
        raise DataError(
            f"{call.name} cannot be trained: expected a scalar loss as its result, or as the result's 'loss' or first "
            f"element, got {loss}"
        )


def _digest(program: Program) -> bytes:
    """A hash of all state."""
    h = hashlib.sha256()
    for a in program.state.values():
        h.update(a.tobytes())
    return h.digest()


def _loss(result) -> float:
    """The scalar of a step's result: the result, its `loss`, or its first element."""
    while isinstance(result, Mapping | tuple | list):
        if not result:
            return float("nan")
        if isinstance(result, Mapping):
            result = result["loss"] if "loss" in result else next(iter(result.values()))
        else:
            result = result[0]
    return float("nan") if result is None else float(np.mean(result, dtype=np.float64))


def _shown(steps: Iterable[int], progress: bool, label: str, total: int, at: int) -> Iterable[int]:
    """The steps, with a bar on standard error if asked and tqdm is installed."""
    if not progress:
        return steps
    try:
        from tqdm import tqdm
    except ImportError:
        return steps
    return tqdm(steps, desc=label, total=total, initial=at, leave=False, unit="batch")


def _fingerprint(program: Program, data: Mapping[str, np.ndarray], *how: object) -> str:
    """What a checkpoint belongs to: going on with other data or another model would be silent nonsense."""
    h = hashlib.sha256(repr((program.fingerprint, how)).encode())
    for k in sorted(data):
        a = np.ascontiguousarray(data[k])
        h.update(f"{k} {a.dtype} {a.shape}".encode())
        h.update(a.view(np.uint8).reshape(-1).data if a.size else b"")
    return h.hexdigest()


@contextmanager
def _place(folder: str | Path | None, fingerprint: str) -> Iterator[_Place]:
    """A checkpoint folder, which no other run uses at the same time."""
    if folder is None:
        yield _Place(None, fingerprint)
        return
    folder = Path(folder)
    require_safetensors()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise DataError(f"{folder}: a checkpoint is a folder, this is a file") from None
    fd = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another run is using this checkpoint folder") from None
        for unfinished in folder.glob(f".{STATE_FILE}.*"):  # of a run that was killed while it saved
            unfinished.unlink()
        check_writable(folder / STATE_FILE)
        yield _Place(folder, fingerprint)
    finally:
        os.close(fd)


@dataclass
class _Place:
    """One file that holds the state and, as metadata, where the run stands."""

    folder: Path | None
    fingerprint: str

    @property
    def path(self) -> Path:
        return self.folder / STATE_FILE

    def save(self, program: Program, epoch: int, batch: int, total: float, history: History) -> None:
        if self.folder is None:
            return
        where = {
            "epoch": epoch,
            "batch": batch,
            "total": total.hex(),
            "steps": history.steps,
            "loss": history.loss,
            "validation": history.validation,
            "fingerprint": self.fingerprint,
        }
        program.save(self.path, metadata={RUN: json.dumps(where)})

    def resume(self, program: Program) -> tuple[int, int, float, History]:
        """Epoch and batch that come next, the sum of this epoch's losses so far, what was before."""
        if self.folder is None or not self.path.exists():
            return 0, 0, 0.0, History()
        text = read_metadata(self.path).get(RUN)
        if text is None:
            raise DataError(f"{self.path}: holds no training run (it was saved by something else)")
        where = json.loads(text)
        if where["fingerprint"] != self.fingerprint:
            raise DataError(
                f"{self.path}: this checkpoint is of another program, other data, or another function, seed or order; "
                "give another checkpoint folder or remove it"
            )
        program.load_state(self.path)
        history = History(where["loss"], where["validation"], where["steps"], resumed=(where["epoch"], where["batch"]))
        return where["epoch"], where["batch"], float.fromhex(where["total"]), history
