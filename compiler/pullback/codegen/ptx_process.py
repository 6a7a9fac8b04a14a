"""PTX from LLVM IR, in a child process: LLVM ends a process that hands it what it cannot translate.

In: the text of a module for NVIDIA GPUs; out: the text of PTX.  What kills the child becomes a `BuildError` that
names the kernel.  This file is also the child's program, so that it starts without the rest of the package.
"""

from __future__ import annotations

import re
import subprocess
import sys

TRIPLE = "nvptx64-nvidia-cuda"
DATA_LAYOUT = "e-p6:32:32-i64:64-i128:128-i256:256-v16:16-v32:32-n16:32:64"
# LLVM picks the lowest PTX version that knows a chip; later ones have instructions that we use.
FEATURES = {"sm_90": "+ptx83", "sm_90a": "+ptx83", "sm_100": "+ptx86", "sm_100a": "+ptx86"}
_GPU = re.compile(r"sm_\d+[af]?")
_KERNEL = re.compile(r"^define .*\bptx_kernel\b.*?@([\w.$-]+)\(", re.M)
_FUNCTION = re.compile(r"In function: ([\w.$-]+)|function @?'?([\w.$-]+)'?")


def ptx(text: str, gpu: str, level: int = 3, only: tuple[str, ...] = (), timeout: float = 600.0) -> str:
    """The PTX of a module for `gpu` (sm_80, sm_90, sm_90a, sm_120 ...).

    `level` is LLVM's optimisation level (0: register promotion only); `only` keeps these kernels and drops the rest.
    """
    from ..errors import BuildError

    if not _GPU.fullmatch(gpu):
        raise BuildError(f"unknown GPU {gpu!r}: expected a name as sm_80, sm_90, sm_90a, sm_120")
    kernels = only or tuple(_KERNEL.findall(text))
    status, out, error = _child(text, gpu, level, only, timeout)
    if status == 0:
        return out
    guilty, reason = ("", error) if status == 2 else _guilty(text, gpu, level, kernels, error, timeout)
    what = (
        f"kernel {guilty}"
        if guilty
        else f"a module of kernels ({', '.join(kernels[:4])}{', ...' * (len(kernels) > 4)})"
    )
    how = "is refused by LLVM" if status == 2 else f"ends LLVM ({_ending(status)})"
    raise BuildError(f"{what}, compiled to PTX for {gpu}, {how}: {reason.strip() or 'no message'}")


def _child(text: str, gpu: str, level: int, only: tuple[str, ...], timeout: float) -> tuple[int, str, str]:
    """(exit status, PTX, message)."""
    command = [sys.executable, "-P", __file__, gpu, str(level), *only]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return -24, "", f"it took more than {timeout:g} s"
    return done.returncode, done.stdout, _message(done.stderr)


def _message(error: str) -> str:
    """LLVM's own message, without the addresses of its stack."""
    lines = [s for s in error.splitlines() if not re.match(r"\s*#\d+ |Stack dump|PLEASE |Aborted|\d+\.\t", s)]
    return "\n".join(lines[:20])


def _guilty(text, gpu, level, kernels, error, timeout) -> tuple[str, str]:
    """(the first kernel that does not compile, its message): halves of the kernels are tried until one is left."""
    if m := _FUNCTION.search(error):
        name = m[1] or m[2]
        if name in kernels:
            return name, error
    while len(kernels) > 1:
        half = kernels[: len(kernels) // 2]
        status, _, message = _child(text, gpu, level, half, timeout)
        kernels, error = (half, message) if status else (kernels[len(half) :], error)
    if not kernels:
        return "", error
    status, _, message = _child(text, gpu, level, kernels, timeout)
    return (kernels[0], message) if status else ("", error)


def _ending(status: int) -> str:
    import signal

    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def main(arguments: list[str]) -> int:
    """The child: text on standard input, PTX on standard output; status 2 and a message for what LLVM refuses."""
    import llvmlite.binding as llvm

    gpu, level, only = arguments[0], int(arguments[1]), arguments[2:]
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    text = re.sub(r"^target .*$", "", sys.stdin.read(), flags=re.M)
    target = llvm.Target.from_triple(TRIPLE)
    machine = target.create_target_machine(cpu=gpu, features=FEATURES.get(gpu, ""), opt=min(level, 3))
    try:
        head = f'target triple = "{TRIPLE}"\ntarget datalayout = "{machine.target_data}"\n'
        module = llvm.parse_assembly(head + text)
        module.verify()
    except RuntimeError as e:
        print(e, file=sys.stderr)
        return 2
    if unknown := re.search(r"; Unknown intrinsic\n(?:;.*\n)*declare .*@([\w.]+)", str(module)):
        users = [f.name for f in module.functions if not f.is_declaration and f"@{unknown[1]}(" in str(f)]
        print(f"there is no intrinsic @{unknown[1]} (used in {', '.join(users) or 'no function'})", file=sys.stderr)
        return 2
    if only:
        for f in module.functions:
            if not f.is_declaration and f.name not in only:
                f.linkage = "internal"
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=level))
    if only or not level:
        first = llvm.create_new_module_pass_manager()
        first.add_global_dead_code_eliminate_pass()
        first.add_sroa_pass()
        first.run(module, passes)
    if level:
        passes.getModulePassManager().run(module, passes)
    sys.stdout.write(machine.emit_assembly(module))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
