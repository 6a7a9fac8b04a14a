"""The native module: instruction sets, the C ABI from C, failures; and artifacts that must be refused."""

import ctypes
import io
import json
import os
import random
import shutil
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import artifact_by_hand as hand
import numpy as np
import pytest

import pullback_runtime as rt
from pullback.artifact import write
from pullback.artifact.header import header, struct_sizes
from pullback.artifact.tables import pack_tables
from pullback.codegen.compile import compile_module
from pullback.codegen.native import native_module, native_object
from pullback.codegen.target import cpu_target
from pullback.errors import BuildError
from pullback.kernel.plan import FIRST_ARGUMENT, STATE, Repeat
from pullback_runtime import library, sections
from pullback_runtime.format import FEATURES, SECTION, check_machine, parse_manifest, read_manifest
from pullback_runtime.sections import read_section

N = hand.N


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return hand.build(tmp_path_factory.mktemp("artifact") / "demo.so")


def cpu_flags() -> set[str]:
    with open("/proc/cpuinfo") as f:
        return set(next(line for line in f if line.startswith("flags")).split(":")[1].split())


# ---- instruction sets -----------------------------------------------------------------------------------
def test_features_are_what_the_system_says(path):
    have = library.Library(str(path), read_manifest(path))._function("pb_features", ctypes.c_uint64)()
    ours = {f for i, f in enumerate(FEATURES) if have >> i & 1}
    linux = {"sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "cx16": "cx16", "lzcnt": "abm", "bmi": "bmi1"}
    linux |= {
        f: "avx512_" + f[6:] for f in ("avx512vnni", "avx512bitalg", "avx512vpopcntdq", "avx512fp16", "avx512bf16")
    }
    linux |= {"avx512vbmi2": "avx512_vbmi2", "avxvnni": "avx_vnni", "avx512vbmi": "avx512vbmi"}
    flags = cpu_flags()
    assert ours == {f for f in FEATURES if linux.get(f, f) in flags}


def test_best_usable_level_is_chosen(tmp_path):
    path = hand.build(tmp_path / "levels.so", isas=("v2", "v3", "v4"))
    p = rt.load(path, threads=1)
    flags = cpu_flags()
    assert p.context.level == (2 if "avx512vl" in flags else 1 if "avx2" in flags else 0)
    want = hand.train_reference(np.zeros(N, np.float32), np.ones(N, np.float32))
    for level in (1, 2, 3):
        p.context.options.level = level
        if level - 1 > p.context.level:
            continue
        p.context.open(1)
        p.init(0)
        assert np.array_equal(p.train(x=np.ones(N, np.float32), i=np.zeros(N, np.int32)), want)


def test_code_for_another_processor_is_refused(tmp_path, monkeypatch):
    missing = next(f for f in reversed(FEATURES) if f in ("avx512fp16", "avxvnni"))
    if {"avx512_fp16", "avx_vnni"} <= cpu_flags():
        pytest.skip("this processor has everything")
    missing = "avx512fp16" if "avx512_fp16" not in cpu_flags() else "avxvnni"
    monkeypatch.setattr(write, "required_features", lambda t: ("sse3", missing))
    path = hand.build(tmp_path / "other.so")
    with pytest.raises(rt.ArtifactError, match=f"other.so: built for x86-64-v2, but this processor lacks {missing}"):
        rt.load(path)


def test_level_requirements():
    assert write.required_features(cpu_target("x86-64-v2")) == ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16")
    v4 = replace(cpu_target("x86-64-v4"), features="+avx512bf16,-amx-tile")
    assert {"avx512bf16", "avx512vl", "avx2", "sse3"} <= set(write.required_features(v4))
    with pytest.raises(BuildError, match="unknown processor 'vax'"):
        write.required_features(replace(v4, cpu="vax"))


# ---- tables ---------------------------------------------------------------------------------------------
def test_loops_nest_and_run_backwards(tmp_path):
    """t += 1; out[3 i + k] = t, for i in 0, 1 and within it k in 2, 1, 0; nothing for loops and launches of no size."""
    one, t, out = hand.IN0, hand.SCRATCH, hand.arg(4, 0, 12, 4)
    count, note = hand.launch(hand.add(t, one, t, 1)), hand.launch(hand.add(t, hand.ZERO, out, 1))
    nothing = hand.launch(hand.add(t, t, t, 0))
    clear = hand.launch(hand.add(hand.ZERO, hand.ZERO, hand.SCRATCH), chunk=5)
    steps = (clear, Repeat(2, (Repeat(0, (count,)), Repeat(3, (count, nothing, note), reverse=True))), Repeat(2, ()))
    p = replace(hand.TRAIN, name="f", inputs=(hand.VECTOR,), outputs=(hand.VECTOR,), steps=steps, commit=3)
    made = hand.program(hand.function(p, ("x",)), hand.function(hand.INIT)), hand.plan(p, hand.INIT)
    path = hand.build(tmp_path / "loops.so", made)
    for threads in (1, 2):
        q = rt.load(path, threads=threads)
        assert q.f(x=np.ones(N, np.float32))[:6].tolist() == [3, 2, 1, 6, 5, 4]


@pytest.mark.parametrize("chunk", [1, 3])
def test_every_portion_runs_once(tmp_path, chunk):
    """300 launches of two calls (one block of 5, one of 2 a portion) from both ends: each adds 1 to its part."""
    half = N // 2
    low, one = hand.arg(STATE), hand.IN0
    high = hand.arg(STATE, 4 * half)
    both = hand.launch(
        replace(hand.add(low, one, low, half), grain=5), replace(hand.add(high, one, high, half), grain=2), chunk=chunk
    )
    copy = hand.launch(hand.add(hand.W, hand.ZERO, hand.arg(FIRST_ARGUMENT + 1)), chunk=N)
    p = replace(hand.TRAIN, name="f", inputs=(hand.VECTOR,), steps=(Repeat(300, (both,)), copy), commit=0)
    made = hand.program(hand.function(p, ("x",)), hand.function(hand.INIT)), hand.plan(p, hand.INIT)
    path = hand.build(tmp_path / "ends.so", made)
    for threads in (1, 2, 3):
        assert (rt.load(path, threads=threads).f(x=np.ones(N, np.float32)) == 300).all()


def test_plans_that_cannot_be_packed():
    deep = hand.TRAIN.steps[0]
    for _ in range(5):
        deep = Repeat(2, (deep,))
    with pytest.raises(BuildError, match="scans are nested more than 4 deep"):
        pack_tables(hand.plan(replace(hand.TRAIN, steps=(deep,))))
    many = hand.launch(hand.add(hand.W, hand.W, hand.W, 1 << 16))
    with pytest.raises(BuildError, match=r"model.py:12: a launch of 65536 portions is too large"):
        pack_tables(hand.plan(replace(hand.TRAIN, steps=(many,))))
    pack_tables(hand.plan(replace(hand.TRAIN, steps=(replace(many, chunk=1 << 16),))))  # one worker's


def test_native_module_is_made_once():
    assert native_module() is native_module() and native_object() is native_object()


# ---- C --------------------------------------------------------------------------------------------------
C_PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "demo.h"

static void *block(size_t n) { void *p = aligned_alloc(64, (n + 127) / 64 * 64); return p ? p : (exit(3), p); }

int main(int argc, char **argv) {
  (void)argv;
  if (argc == 2) {
    printf("%zu %zu %zu %zu\n", sizeof(pb_options), sizeof(pb_sizes_t), sizeof(pb_status), sizeof(pb_call_block));
    return 0;
  }
  pb_options options = {.size = sizeof options, .threads = 2};
  pb_sizes_t sizes;
  if (pb_abi() != PB_ABI || pb_sizes(&options, &sizes)) return 1;
  pb_context *context = block(sizes.context);
  options.state = block(sizes.state), options.arena = block(sizes.arena), options.scratch = block(sizes.scratch);
  pb_status status;
  options.size = 3;
  if (pb_open(context, &options) != PB_NO_OPTIONS) return 7;
  options.size = sizeof options;
  if (pb_open(context, &options) || pb_init(context, 7, &status)) return 2;
  float x[64], out[64];
  int32_t index[64] = {0};
  for (int i = 0; i < 64; i++) x[i] = i;
  for (int step = 0; step < 100; step++)
    if (pb_train(context, x, index, out, &status)) return 4;
  const float *w = (const float *)((char *)pb_state(context) + PB_STATE_W);
  for (int i = 0; i < 64; i++) if (w[i] != out[i]) return 5;
  index[5] = 44;
  int64_t code = pb_train(context, x, index, out, &status);
  printf("%g %g %lld %lld ", out[1], out[63], (long long)code, (long long)status.value);
  printf("%d\n", pb_run(context, 99, 0, &status) == PB_NO_FUNCTION);
  size_t n;
  const char *manifest = pb_manifest(&n);
  printf("%c%c\n", manifest[0], manifest[n - 1]);
  pb_close(context);
  pb_close(context);
  return pb_run(context, PB_FUNCTION_TRAIN, 0, &status) == PB_NO_CONTEXT ? 0 : 6;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_c_program_trains(path, tmp_path):
    (tmp_path / "demo.h").write_text(header(read_manifest(path)))
    (tmp_path / "main.c").write_text(C_PROGRAM)
    shutil.copy(path, tmp_path / "demo.so")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-O1"]
    subprocess.run(["cc", *flags, "-o", "main", "main.c", "./demo.so", "-Wl,-rpath,$ORIGIN"], cwd=tmp_path, check=True)
    sizes = subprocess.run(["./main", "sizes"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert list(map(int, sizes.split())) == list(struct_sizes().values())
    assert list(struct_sizes().values()) == [
        ctypes.sizeof(t) for t in (library.Options, library.Sizes, library.Status, library.CallBlock)
    ]
    done = subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    want = hand.train_reference(np.zeros(N, np.float32), np.arange(N, dtype=np.float32)) * 100
    assert done.returncode == 0
    assert done.stdout == f"{want[1]:g} {want[63]:g} 1 44 1\n{{}}\n"


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_header_is_cpp(path, tmp_path):
    (tmp_path / "demo.h").write_text(header(read_manifest(path)))
    (tmp_path / "a.cpp").write_text('#include "demo.h"\nint main() { return PB_FUNCTION_TRAIN; }\n')
    subprocess.run(
        ["c++", "-fsyntax-only", "-Wall", "-Werror", "-Wno-unused-function", "a.cpp"], cwd=tmp_path, check=True
    )


# ---- artifacts that must be refused ---------------------------------------------------------------------
def test_damaged_files_give_clear_errors(path, tmp_path):
    good, bad = path.read_bytes(), tmp_path / "bad.so"
    rng = random.Random(0)
    for n in [0, 3, 63, 64, 100, 4096, len(good) // 2, len(good) - 1]:
        bad.write_bytes(good[:n])
        with pytest.raises(rt.ArtifactError, match=r"bad\.so: (not a Pullback artifact|truncated)"):
            rt.load(bad)
    start = struct.unpack_from("<Q", good, 40)[0]
    for _ in range(3000):
        raw = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            where = rng.choice([rng.randrange(64), rng.randrange(start, len(good))])
            raw[where] = rng.randrange(256)
        try:
            machine, manifest = sections._read_section(sections._File(io.BytesIO(raw), "bad.so"), SECTION)
            parse_manifest(manifest, "bad.so", machine)
        except rt.ArtifactError as e:
            assert str(e).startswith("bad.so: ")


def test_damaged_manifests_give_clear_errors(path):
    _, good = read_section(path, SECTION)
    rng = random.Random(1)
    parse_manifest(good)
    raw = json.loads(good)
    for key in raw:
        for wrong in (None, 3, "x", [1], {"a": 1}, -1):
            try:
                parse_manifest(json.dumps({**raw, key: wrong}).encode())
            except rt.ArtifactError as e:
                assert "manifest" in str(e) or "version" in str(e)
    for _ in range(2000):
        data = bytearray(good)
        data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            parse_manifest(bytes(data))
        except rt.ArtifactError as e:
            assert "manifest" in str(e) or "version" in str(e)


def test_state_outside_of_its_memory_is_refused(path):
    _, good = read_section(path, SECTION)
    raw = json.loads(good)
    raw["state"][0]["offset"] = 10**6
    with pytest.raises(rt.ArtifactError, match="state w lies outside of the state's memory"):
        parse_manifest(json.dumps(raw).encode())


def test_foreign_files_are_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        rt.load(tmp_path / "nowhere.so")
    with pytest.raises(rt.ArtifactError, match="cannot be read"):
        rt.load(tmp_path)
    (tmp_path / "text.so").write_text("hello " * 100)
    with pytest.raises(rt.ArtifactError, match=r"text\.so: not a Pullback artifact \(no 64-bit ELF file\)"):
        rt.load(tmp_path / "text.so")
    object_file = tmp_path / "kernels.o"
    object_file.write_bytes(compile_module(hand.kernels(), hand.TARGET))
    with pytest.raises(rt.ArtifactError, match=r"not a Pullback artifact \(an ELF file, but no shared library\)"):
        rt.load(object_file)
    libc = subprocess.run(["ldd", shutil.which("sh")], capture_output=True, text=True).stdout.split("libc.so.6 => ")
    if len(libc) > 1:
        with pytest.raises(rt.ArtifactError, match=r"a shared library without section \.pullback\.manifest"):
            rt.load(libc[1].split()[0])


def test_other_versions_and_machines_are_refused(path, tmp_path):
    _, good = read_section(path, SECTION)
    raw = json.loads(good)
    with pytest.raises(rt.ArtifactError, match="format version 99, but this runtime reads version 3"):
        parse_manifest(json.dumps({**raw, "version": 99}).encode())
    with pytest.raises(rt.ArtifactError, match="code for x86_64, but the manifest says aarch64"):
        parse_manifest(json.dumps({**raw, "machine": "aarch64"}).encode(), "a.so", "x86_64")
    with pytest.raises(rt.ArtifactError, match="built for vax, but this machine is"):
        check_machine(parse_manifest(json.dumps({**raw, "machine": "vax"}).encode()), "a.so")
    arm = bytearray(path.read_bytes())
    struct.pack_into("<H", arm, 18, 183)
    (tmp_path / "arm.so").write_bytes(arm)
    with pytest.raises(rt.ArtifactError, match="code for aarch64, but the manifest says x86_64"):
        rt.load(tmp_path / "arm.so")


def test_manifest_says_everything(path):
    m = read_manifest(path)
    assert (m.name, m.machine, m.state_bytes, m.options) == ("demo", "x86_64", 384, {"script_args": ["--width", "64"]})
    train = m.functions[0]
    assert [str(a) for a in (*train.arguments, *train.results)] == ["f32[64]", "i32[64]", "f32[64]"]
    assert (train.file, train.line, train.inputs, train.outputs) == ("model.py", 12, {"dict": {"x": 0, "i": 1}}, 0)
    assert m.state_names["tied"] is m.state_names["w"] and m.state_names["m"].strides == (1, 2)
    level = m.levels[0]
    assert (level.name, level.cpu, level.arena, level.scratch) == ("v2", "x86-64-v2", 256, 64)
    call = level.call(0, 0, 0)
    assert (call.label, call.file, call.line, call.sites) == (
        "take",
        "model.py",
        12,
        ("model.py:12: index of take(table, i)",),
    )
    assert parse_manifest(m.to_json()) == m


# ---- processors -----------------------------------------------------------------------------------------
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_workers_stay_off_the_callers_processor(path):
    """Else a system that packs threads onto few processors puts a woken worker behind the thread that woke it."""

    def processor() -> int:
        return int(Path("/proc/thread-self/stat").read_text().rsplit(")", 1)[1].split()[36])

    allowed, before = os.sched_getaffinity(0), set(os.listdir("/proc/self/task"))
    program = rt.load(path, threads=2)
    arrays = {"x": np.ones(N, np.float32), "i": np.zeros(N, np.int32)}
    program.train(**arrays)
    (worker,) = (int(t) for t in set(os.listdir("/proc/self/task")) - before)
    try:
        for cpu in sorted(allowed)[:2]:
            os.sched_setaffinity(0, {cpu})  # go there
            os.sched_setaffinity(0, allowed)
            end = time.monotonic() + 5
            while time.monotonic() < end:
                time.sleep(0.005)  # the worker falls asleep, so the next step wakes it
                here = processor()
                program.train(**arrays)
                if here == processor() and os.sched_getaffinity(worker) == allowed - {here}:
                    break
            else:
                pytest.fail(f"the caller runs on {here}, its worker may run on {os.sched_getaffinity(worker)}")
    finally:
        os.sched_setaffinity(0, allowed)
