"""Reading training data: .npz, .npy and .csv files -> one array for each input of a function.

Every array has the samples along its first axis.  Errors name the file, what was expected and what it holds.
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .errors import DataError


def load_data(sources: Sequence[str], inputs: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The arrays of `inputs` (name -> shape of one sample) from files.

    A source is `file.npz` (arrays by input name), `file.csv` (a header; for scalars a column named as the input, for
    vectors columns `input.0`, `input.1`, ...; one input may take all columns that are left over), or `input=file.npy`.
    A lone `.npy` goes to a function's only input.  Further arrays of a .npz file are left out.
    """
    found: dict[str, np.ndarray] = {}
    origin: dict[str, Path] = {}
    for source in sources:
        name, _, rest = source.rpartition("=")
        path = Path(rest if name else source)
        for n, array in _read(path, name, inputs).items():
            if n in inputs and n in found:
                raise DataError(f"{path}: input {n!r} was already read from another --data file, {origin[n]}")
            found[n], origin[n] = array, path
    missing = [n for n in inputs if n not in found]
    if missing:
        held = ", ".join(map(repr, found)) or "nothing"
        raise DataError(f"no data for input {', '.join(map(repr, missing))}: {', '.join(sources)} has {held}")
    scalars = [n for n in inputs if found[n].ndim == 0]
    if scalars:
        raise DataError(f"input {scalars[0]!r}: expected an array with the samples along its first axis, got a scalar")
    lengths = {n: len(found[n]) for n in inputs}
    if len(set(lengths.values())) != 1:
        raise DataError(f"inputs have different numbers of samples: {lengths}")
    for n, shape in inputs.items():
        if found[n].shape[1:] != shape:
            raise DataError(f"input {n!r}: expected samples of shape {list(shape)}, got {list(found[n].shape[1:])}")
    return {n: found[n] for n in inputs}


def _read(path: Path, name: str, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    readers = {".npz": _read_npz, ".npy": _read_npy, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: expected a .npz, .npy or .csv file")
    try:
        found = reader(path, name, inputs)
    except DataError:
        raise
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror or e}") from e
    except (ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile, NotImplementedError) as e:
        raise DataError(f"{path}: not a readable {path.suffix} file: {e}") from e
    for n, a in found.items():
        if n in inputs and a.dtype.kind not in "biufV":  # V: bfloat16
            raise DataError(f"{path}: input {n!r}: expected numbers, got an array of {a.dtype}")
    return found


def _read_npz(path: Path, name: str, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        if not hasattr(arrays, "files"):
            raise ValueError("it holds a single array, no archive")
        return {k: arrays[k] for k in arrays.files}


def _read_npy(path: Path, name: str, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    if not name:
        if len(inputs) != 1:
            raise DataError(f"{path}: say which input it is: NAME={path}, NAME one of {', '.join(inputs)}")
        (name,) = inputs
    if name not in inputs:
        raise DataError(f"{path}: there is no input {name!r}; the inputs are {', '.join(inputs)}")
    return {name: np.load(path, allow_pickle=False)}


def _read_csv(path: Path, name: str, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    with path.open(newline="") as f:
        rows = list(csv.reader(f))
    if len(rows) < 2:
        raise DataError(f"{path}: expected a header and at least one row")
    header = [h.strip() for h in rows[0]]
    table = np.empty((len(rows) - 1, len(header)))
    for i, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise DataError(f"{path}, line {i + 2}: expected {len(header)} columns, got {len(row)}")
        for j, cell in enumerate(row):
            try:
                table[i, j] = float(cell)
            except ValueError:
                raise DataError(f"{path}, line {i + 2}, column {header[j]!r}: not a number: {cell!r}") from None
    return _columns(path, header, table, inputs)


def _columns(path: Path, header: list[str], table: np.ndarray, inputs) -> dict[str, np.ndarray]:
    found, left = {}, list(range(len(header)))
    vectors = []
    for n, shape in inputs.items():
        numbered = [f"{n}.{k}" for k in range(int(np.prod(shape)))]
        if shape == () and n in header:
            columns = [header.index(n)]
        elif shape and all(c in header for c in numbered):
            columns = [header.index(c) for c in numbered]
        else:
            vectors.append(n)
            continue
        left = [c for c in left if c not in columns]
        found[n] = _integral(table[:, columns]).reshape(len(table), *shape)
    if len(vectors) == 1 and len(left) == int(np.prod(inputs[vectors[0]])):
        (n,) = vectors
        found[n] = _integral(table[:, left]).reshape(len(table), *inputs[n])
    elif vectors:
        n = vectors[0]
        count = int(np.prod(inputs[n]))
        names = [n] if inputs[n] == () else [f"{n}.{k}" for k in range(count)]
        raise DataError(
            f"{path}: no columns for input {n!r}: expected {_listed(names)} (or, if all other inputs have theirs, "
            f"{count} columns left over, of any name; there are {len(left)}); the header is {_listed(header)}"
        )
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names if len(names) <= 8 else [*names[:3], "...", names[-1]])


def _integral(a: np.ndarray) -> np.ndarray:
    """Whole numbers as integers (labels), anything else as it is."""
    return a.astype(np.int64) if np.isfinite(a).all() and (a == np.rint(a)).all() else a
