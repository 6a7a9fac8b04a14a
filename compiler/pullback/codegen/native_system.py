"""The native module's base: futex locks, spinning, the processor's features, memcpy and memset.

System calls go through libc's `syscall`, so an artifact imports that and two pthread functions only, which have
the same version in every glibc and exist in musl.
"""

from __future__ import annotations

from pullback_runtime.format import FEATURES

from .native_builder import Function, Value

FUTEX, MMAP, MADVISE, SIGPROCMASK = 202, 9, 28, 14
GETTID, SCHED_SETAFFINITY, SCHED_GETAFFINITY, GETCPU = 186, 203, 204, 309
WAIT, WAKE = 128, 129
"""Futex operations, private to the process."""

SPIN = 1000
"""How often a waiting worker looks at the word before it sleeps (about 10 to 30 microseconds)."""

# Where cpuid tells of a feature: leaf, subleaf, register (eax ebx ecx edx), bit, and the bits of XCR0 without
# which the operating system does not save its registers (Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E).
_AVX, _AVX512 = 0x06, 0xE6
_CPUID = {
    "sse3": (1, 0, 2, 0, 0),
    "ssse3": (1, 0, 2, 9, 0),
    "fma": (1, 0, 2, 12, _AVX),
    "cx16": (1, 0, 2, 13, 0),
    "sse4.1": (1, 0, 2, 19, 0),
    "sse4.2": (1, 0, 2, 20, 0),
    "movbe": (1, 0, 2, 22, 0),
    "popcnt": (1, 0, 2, 23, 0),
    "avx": (1, 0, 2, 28, _AVX),
    "f16c": (1, 0, 2, 29, _AVX),
    "lzcnt": (0x80000001, 0, 2, 5, 0),
    "bmi": (7, 0, 1, 3, 0),
    "avx2": (7, 0, 1, 5, _AVX),
    "bmi2": (7, 0, 1, 8, 0),
    "avx512f": (7, 0, 1, 16, _AVX512),
    "avx512dq": (7, 0, 1, 17, _AVX512),
    "avx512ifma": (7, 0, 1, 21, _AVX512),
    "avx512cd": (7, 0, 1, 28, _AVX512),
    "avx512bw": (7, 0, 1, 30, _AVX512),
    "avx512vl": (7, 0, 1, 31, _AVX512),
    "avx512vbmi": (7, 0, 2, 1, _AVX512),
    "avx512vbmi2": (7, 0, 2, 6, _AVX512),
    "avx512vnni": (7, 0, 2, 11, _AVX512),
    "avx512bitalg": (7, 0, 2, 12, _AVX512),
    "avx512vpopcntdq": (7, 0, 2, 14, _AVX512),
    "avx512fp16": (7, 0, 3, 23, _AVX512),
    "avxvnni": (7, 1, 0, 4, _AVX),
    "avx512bf16": (7, 1, 0, 5, _AVX512),
}


def futex_wait(f: Function, address: Value, value: Value) -> None:
    """Sleep until somebody wakes `address`, unless it does not hold `value` any more.  May return early."""
    f.syscall(FUTEX, address, WAIT, value, 0, 0, 0)


def futex_wake(f: Function, address: Value, count: Value | int) -> None:
    f.syscall(FUTEX, address, WAKE, count, 0, 0, 0)


def functions() -> list[Function]:
    return [lock(), unlock(), changes(), features(), memcpy(), memset()]


def lock() -> Function:
    """0 free, 1 taken, 2 taken and somebody may be waiting (Drepper, Futexes Are Tricky, section 5)."""
    f = Function("void", "lock", "ptr address")
    address = f["address"]
    with f.when(address.compare_exchange(0, 1, "i32"), likely=True):
        f.ret()
    with f.forever():
        with f.when(address.exchange(2, "acquire", "i32") == 0):
            f.ret()
        futex_wait(f, address, f.operand(2, "i64"))
    return f


def unlock() -> Function:
    f = Function("void", "unlock", "ptr address")
    with f.when(f["address"].exchange(0, "release", "i32") == 2):
        futex_wake(f, f["address"], 1)
    f.ret()
    return f


def changes() -> Function:
    """Spin until the word's launch number is another; false if that takes too long."""
    f = Function("i1", "changes", "ptr control, i64 number")
    with f.count_to(0, SPIN):
        with f.when((f["control"].load(order="acquire") >> 32) != f["number"]):
            f.ret(1)
        f.line('call void asm sideeffect "pause", "~{memory},~{dirflag},~{fpsr},~{flags}"()')
    f.ret(0)
    return f


def features() -> Function:
    """The processor's features that this process may use, one bit each, in the order of format.FEATURES."""
    f = Function("i64", "pb_features", linkage="")
    four = "{ i32, i32, i32, i32 }"

    def cpuid(leaf: int, sub: int) -> list[Value]:
        both = f.emit(
            four,
            f'call {four} asm sideeffect "cpuid", "={{ax}},={{bx}},={{cx}},={{dx}},{{ax}},{{cx}},~{{dirflag}},~{{fpsr}}'
            f',~{{flags}}"(i32 {leaf}, i32 {sub})',
        )
        return [f.emit("i32", f"extractvalue {both}, {i}") for i in range(4)]

    highest = {0: cpuid(0, 0)[0], 0x80000000: cpuid(0x80000000, 0)[0]}
    enabled, mask = f.variable("i64", 0), f.variable("i64", 0)
    with f.when((cpuid(1, 0)[2] & (1 << 27)) != 0):  # OSXSAVE: xgetbv exists
        pair = "{ i32, i32 }"
        both = f.emit(pair, f'call {pair} asm sideeffect "xgetbv", "={{ax}},={{dx}},{{cx}}"(i32 0)')
        enabled.set(f.emit("i32", f"extractvalue {both}, 0").to("i64"))
    for leaf, sub in sorted({(l, s) for l, s, *_ in _CPUID.values()}):
        with f.when(highest[leaf & 0x80000000] >= leaf):
            registers = [r.to("i64") for r in cpuid(leaf, sub)]
            for i, name in enumerate(FEATURES):
                at_leaf, at_sub, register, bit, state = _CPUID[name]
                if (at_leaf, at_sub) == (leaf, sub):
                    has = ((registers[register] >> bit) & 1) & ((enabled.get() & state) == state).to("i64")
                    mask.set(mask.get() | (has << i))
    f.ret(mask.get())
    return f


def memcpy() -> Function:
    """LLVM may call it for large copies; our own, so that nothing is imported for it."""
    f = Function("ptr", "memcpy", "ptr to, ptr from, i64 count", "hidden", "#2")
    three = "{ ptr, ptr, i64 }"
    f.emit(
        three,
        f'call {three} asm sideeffect "rep movsb", "={{di}},={{si}},={{cx}},0,1,2,~{{memory}},~{{dirflag}},~{{fpsr}}'
        f',~{{flags}}"({f["to"]}, {f["from"]}, {f["count"]})',
    )
    f.ret(f["to"])
    return f


def memset() -> Function:
    f = Function("ptr", "memset", "ptr to, i32 byte, i64 count", "hidden", "#2")
    two = "{ ptr, i64 }"
    f.emit(
        two,
        f'call {two} asm sideeffect "rep stosb", "={{di}},={{cx}},0,1,{{ax}},~{{memory}},~{{dirflag}},~{{fpsr}}'
        f',~{{flags}}"({f["to"]}, {f["count"]}, {f["byte"]})',
    )
    f.ret(f["to"])
    return f
