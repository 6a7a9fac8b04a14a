"""A plan and its PTX -> what the manifest says of one GPU (`pullback_runtime.format.Gpu`)."""

from __future__ import annotations

import re

from pullback_runtime import format

from ..codegen.ptx import launch_shape, shared_bytes, symbol, tensor_maps
from ..codegen.target import Target
from ..errors import BuildError
from ..kernel.plan import FunctionPlan, Launch, Plan, Repeat, Step
from .tables import plan_arena

_VERSION = re.compile(r"^\.version (\d+\.\d+)", re.M)


def gpu_entry(plan: Plan, target: Target, ptx: str) -> format.Gpu:
    """How the runtime launches the kernels of a plan for `target`."""
    version = _VERSION.search(ptx)
    if version is None:
        raise BuildError(f"the PTX for {target.isa} does not say its version")
    numbers = {key: i for i, key in enumerate(plan.kernels)}
    kernels = tuple(
        format.GpuKernel(
            symbol(key, target),
            launch_shape(kernel)[1],
            shared_bytes(kernel),
            tuple(format.TensorMap(**m) for m in tensor_maps(kernel)),
        )
        for key, kernel in plan.kernels.items()
    )
    return format.Gpu(
        target.isa,
        version[1],
        plan_arena(plan),
        kernels,
        tuple(f.commit for f in plan.functions),
        [[_step(s, numbers) for s in f.steps] for f in plan.functions],
        [[launch_names(x) for x in launches(f)] for f in plan.functions],
    )


def _step(step: Step, numbers: dict[str, int]) -> list:
    if isinstance(step, Repeat):
        return ["repeat", step.count, step.reverse, *(_step(s, numbers) for s in step.body)]
    calls = ([numbers[c.kernel], c.blocks, *([a.base, a.offset, *a.strides] for a in c.arguments)] for c in step.calls)
    return ["launch", *calls]


def launches(function: FunctionPlan) -> list[Launch]:
    """Every launch of a function once, in order."""

    def visit(steps: tuple[Step, ...]):
        for s in steps:
            if isinstance(s, Repeat):
                yield from visit(s.body)
            else:
                yield s

    return list(visit(function.steps))


def launch_names(launch: Launch) -> list:
    """The calls of a launch in the form of `format.Call`, for messages."""
    return [
        [c.kernel, c.label, c.loc.file, c.loc.line, c.loc.function, c.loc.gradient, list(c.sites)] for c in launch.calls
    ]
