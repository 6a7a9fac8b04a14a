"""The worked example of docs/schedules.md is what the schedule makes."""

from __future__ import annotations

import re
from dataclasses import replace

import pages
import schedule_nests as nests

from pullback.codegen.compile import assembly
from pullback.codegen.cpu import emit_kernel, module
from pullback.codegen.target import cpu_target
from pullback.kernel.text import parse_kernel, print_kernel
from pullback.kernel.verify import verify
from pullback.schedule import masks, pipeline, schedule, sinking, staging, steps

PAGE = pages.page("schedules")


def test_worked_example():
    before, after, _ = pages.blocks("schedules", "kernel")
    kernel = parse_kernel(before)
    assert print_kernel(kernel) == before
    scheduled = schedule(kernel, cpu_target("x86-64-v4"))
    assert print_kernel(scheduled) == after
    nests.same_meaning(kernel, scheduled)


def test_the_tile_of_pairs_is_one_instruction():
    *_, text = pages.blocks("schedules", "kernel")
    kernel = parse_kernel(text)
    verify(kernel)
    assert print_kernel(kernel) == text
    target = replace(cpu_target("x86-64-v4"), has_bf16_dot=True, features="+avx512bf16")
    assert assembly(module([emit_kernel("pair", kernel, target)], target), target).count("vdpbf16ps") == 8


def test_every_step_of_the_table_exists():
    table = PAGE[PAGE.index("| Step |") : PAGE.index("`sink` carries")]
    named = {
        n for line in table.splitlines() if line.startswith("| `") for n in re.findall(r"`(\w+)", line.split("|")[1])
    }
    assert len(named) >= 15
    for name in named:
        assert any(callable(getattr(m, name, None)) for m in (steps, sinking, staging, masks, pipeline)), name
