"""NVIDIA's driver through `cuda-bindings`: its calls with errors as exceptions, one device, one module of kernels.

Everything that this machine may lack (the package, the driver, a device, its architecture, a recent enough driver)
is a `DeviceError` that says what was found and what to do.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import DeviceError, DeviceMemoryError
from .format import Gpu

BINDINGS = "cuda.bindings.driver"
"""The module whose functions are called; tests put a double of it into `sys.modules`."""

NOT_READY, OUT_OF_MEMORY, NO_DEVICE = 600, 2, 100
INVALID_PTX, UNSUPPORTED_PTX, NO_BINARY = 218, 222, 209
LOST = (700, 702, 710, 714, 715, 716, 717, 718, 719)
"""Errors after which the driver refuses everything else that this process asks of the device."""

# Version of PTX -> version of CUDA that brought it (PTX ISA, release notes); in between they went in step.
_PTX = {"7.0": (11, 0), "7.8": (11, 8), "8.6": (12, 7), "8.7": (12, 8), "8.8": (12, 9)}
_LOG = 16 << 10


class Driver:
    """`driver("cuMemAlloc", 64)` is what the function of that name returns, without the error code."""

    def __init__(self, api):
        self.api = api

    def __call__(self, name: str, *args):
        code, *results = getattr(self.api, name)(*args)
        if code:
            raise self.error(name, int(code))
        return results[0] if len(results) == 1 else tuple(results) or None

    def try_(self, name: str, *args) -> tuple:
        """(error code, results ...)"""
        code, *results = getattr(self.api, name)(*args)
        return (int(code), *results)

    def error(self, name: str, code: int) -> DeviceError:
        kind = DeviceMemoryError if code == OUT_OF_MEMORY else DeviceError
        lost = "; this process cannot use the GPU any more" if code in LOST else ""
        return kind(f"{name} failed: {self.text(code)}{lost}")

    def text(self, code: int) -> str:
        """The driver's own words for an error."""
        try:
            number = self.api.CUresult(code)
        except ValueError:  # of a driver that is newer than the package
            return f"error {code}"
        _, name = self.api.cuGetErrorName(number)
        _, words = self.api.cuGetErrorString(number)
        return f"{_decoded(name)} ({_decoded(words)})"


def _decoded(text: bytes | str | None) -> str:
    return text.decode() if isinstance(text, bytes) else str(text)


def open_driver() -> Driver:
    """The driver, initialised."""
    try:
        api = importlib.import_module(BINDINGS)
    except ImportError as e:
        raise DeviceError(
            f"device 'cuda' needs NVIDIA's package cuda-bindings: pip install 'pullback[cuda]' ({e})"
        ) from None
    try:
        (code,) = api.cuInit(0)
    except (RuntimeError, OSError) as e:  # what the package raises where it finds no libcuda
        raise DeviceError(f"no NVIDIA driver was found on this machine: {_first_line(e)}") from None
    driver = Driver(api)
    if code == NO_DEVICE:
        raise DeviceError("the NVIDIA driver finds no GPU on this machine (cuInit: CUDA_ERROR_NO_DEVICE)")
    if code:
        raise DeviceError(f"the NVIDIA driver cannot be used: cuInit says {driver.text(int(code))}")
    return driver


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


class Device:
    """One GPU, by its number, with its primary context (which other libraries of this process share).

    `threads`: how many it can have at a time."""

    def __init__(self, number: int):
        self.driver, self.number = open_driver(), number
        count = self.driver("cuDeviceGetCount")
        if number >= count:
            found = f"there {'is' if count == 1 else 'are'} {count}, numbered from 0" if count else "there is none"
            raise DeviceError(f"no GPU cuda:{number}: {found}")
        self.handle = self.driver("cuDeviceGet", number)
        self.name = _decoded(self.driver("cuDeviceGetName", 128, self.handle)).rstrip("\0")
        kinds = self.driver.api.CUdevice_attribute
        major, minor, count, threads = (
            self.driver("cuDeviceGetAttribute", kind, self.handle)
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                kinds.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
                kinds.CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
            )
        )
        self.capability, self.threads = (major, minor), count * threads
        version = self.driver("cuDriverGetVersion")
        self.cuda = version // 1000, version % 1000 // 10
        self.context = self.driver("cuDevicePrimaryCtxRetain", self.handle)

    def __str__(self) -> str:
        return f"cuda:{self.number} ({self.name}, sm_{self.capability[0]}{self.capability[1]})"

    @contextmanager
    def current(self) -> Iterator[None]:
        """The device's context is the thread's; what was before comes back."""
        self.driver("cuCtxPushCurrent", self.context)
        try:
            yield
        finally:
            self.driver("cuCtxPopCurrent")

    def release(self) -> None:
        self.driver.try_("cuDevicePrimaryCtxRelease", self.handle)


def choose(gpus: tuple[Gpu, ...], device: Device, path: str) -> Gpu:
    """The code that suits a device best: made for it, else for the latest architecture before it."""
    usable = [g for g in gpus if _runs(g.name, device.capability)]
    if not usable:
        held, (major, minor) = ", ".join(g.name for g in gpus), device.capability
        how = f"build with --gpu sm_{major}{minor}"
        raise DeviceError(f"{path}: holds code for {held}, which does not run on {device}: {how}")
    best = max(usable, key=lambda g: _architecture(g.name))
    needs = cuda_of(best.ptx)
    if device.cuda < needs:
        raise DeviceError(
            f"{path}: the code for {best.name} is PTX {best.ptx}, which needs a driver for CUDA {needs[0]}.{needs[1]}, "
            f"but this machine's is for {device.cuda[0]}.{device.cuda[1]}: update the NVIDIA driver"
        )
    return best


def _architecture(name: str) -> tuple[int, int, str]:
    m = re.fullmatch(r"sm_(\d+)(\d)([af]?)", name)
    return (int(m[1]), int(m[2]), m[3]) if m else (99, 0, "")


def _runs(name: str, capability: tuple[int, int]) -> bool:
    """PTX for an architecture runs on later ones; with "a" on that one only, with "f" on its family."""
    major, minor, suffix = _architecture(name)
    if suffix == "a":
        return (major, minor) == capability
    return (major, minor) <= capability and (not suffix or major == capability[0])


def cuda_of(ptx: str) -> tuple[int, int]:
    """The version of CUDA that brought a version of PTX."""
    major, minor = map(int, ptx.split("."))
    return _PTX.get(ptx, (major + 4, minor))


class Kernels:
    """A loaded module."""

    def __init__(self, device: Device, text: bytes, gpu: Gpu, path: str):
        driver, options = device.driver, device.driver.api.CUjit_option
        log = bytearray(_LOG)
        code, module = driver.try_(
            "cuModuleLoadDataEx",
            text + b"\0",
            3,
            [
                options.CU_JIT_ERROR_LOG_BUFFER,
                options.CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
                options.CU_JIT_GENERATE_LINE_INFO,
            ],
            [log, _LOG, 1],
        )
        if code:
            raise _refused(driver, code, log.split(b"\0")[0].decode(errors="replace"), text, gpu, device, path)
        self.driver, self.module, self.gpu = driver, module, gpu
        self.functions: dict[str, object] = {}

    def function(self, symbol: str, shared: int) -> object:
        """A kernel that may be launched with `shared` bytes of dynamic shared memory."""
        found = self.functions.get(symbol)
        if found is None:
            found = self.functions[symbol] = self.driver("cuModuleGetFunction", self.module, symbol.encode())
            if shared > 48 << 10:
                kinds = self.driver.api.CUfunction_attribute
                kind = kinds.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self.driver("cuFuncSetAttribute", found, kind, shared)
        return found

    def local_bytes(self) -> int:
        """The local memory of the kernel that has most: the driver keeps it for every thread that can run."""
        kind = self.driver.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES
        functions = [self.function(k.symbol, k.shared) for k in self.gpu.kernels]
        return max((self.driver("cuFuncGetAttribute", kind, f) for f in functions), default=0)

    def unload(self) -> None:
        self.driver.try_("cuModuleUnload", self.module)


def _refused(driver: Driver, code: int, log: str, text: bytes, gpu: Gpu, device: Device, path: str) -> DeviceError:
    """Why a module was not loaded, with the kernel's name and place where the log lets us find it."""
    symbol = _guilty(log, text.decode(errors="replace"))
    calls = (c for launches in gpu.launches for calls in launches for c in calls)
    place = next((f" ({label}, {file}:{line})" for key, label, file, line, *_ in calls if key in symbol), "")
    what = f"kernel {symbol}{place}" if symbol else f"the code for {gpu.name}"
    why = f"{driver.text(code)}{': ' + log.strip() if log.strip() else ''}"
    if code == UNSUPPORTED_PTX:
        why += "; update the NVIDIA driver"
    kind = DeviceMemoryError if code == OUT_OF_MEMORY else DeviceError
    return kind(f"{path}: {what} is refused by the driver's assembler for {device}: {why}")


def _guilty(log: str, text: str) -> str:
    """The kernel that an assembler's message is about: named, or around the line that is."""
    if m := re.search(r"(?:[Ee]ntry )?[Ff]unction '([\w$.]+)'", log):
        return m[1]
    if m := re.search(r"\bline (\d+)", log):
        before = "\n".join(text.splitlines()[: int(m[1])])
        entries = re.findall(r"^\.visible \.entry ([\w$.]+)\(", before, re.M)
        return entries[-1] if entries else ""
    return ""
