"""Every option of a build, documented once: `docs/options.md` and the flags of the command line are made from this."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """How to build.  Fields are flags of `pullback build` and `inspect` (`_` as `-`; what is on by default is turned
    off by `--no-...`) and keywords of `pb.build`.
    """

    cpu: str = field(
        default="native",
        metadata={
            "help": "instruction sets, comma separated; the best that the processor has is chosen when the file is "
            "loaded: native, x86-64-v2 (SSE4.2), x86-64-v3 (AVX2), x86-64-v4 (AVX-512), or v2, v3, v4"
        },
    )
    target: str = field(default="cpu", metadata={"help": "what to compile for: cpu, cuda, or cpu,cuda"})
    gpu: str = field(
        default="sm_90",
        metadata={
            "help": "architectures of NVIDIA GPUs for the target cuda, comma separated: sm_80, sm_90, sm_90a, ..."
        },
    )
    precision: str = field(
        default="f32",
        metadata={
            "help": "operands of matrix products of f32 tensors: f32; tf32 or bf16 (they are rounded to that, sums and "
            "results are f32 and so is all else)"
        },
    )
    fusion: bool = field(
        default=True,
        metadata={"help": "fuse operations into kernels, else a kernel for each (the bits are the same)"},
    )
    recompute: bool = field(
        default=True,
        metadata={"help": "compute cheap values again in the backward pass, else keep them (the bits are the same)"},
    )
    watch_nan: bool = field(
        default=False,
        metadata={"help": "check what every kernel computes for NaN and infinity, before the step writes state"},
    )
    cache: bool = field(default=True, metadata={"help": "keep artifacts and object code in a folder, to reuse them"})
    cache_dir: Path | None = field(
        default=None, metadata={"help": "that folder; by default $XDG_CACHE_HOME/pullback or ~/.cache/pullback"}
    )

    def content(self) -> dict[str, object]:
        """What the built code depends on (the cache's own settings left out); recorded in the manifest."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("cache")}


def flag(option) -> str:
    """The command line's flag of a field of `Options`."""
    name = option.name.replace("_", "-")
    return f"--no-{name}" if option.default is True else f"--{name}"


def table() -> str:
    """The table of `docs/options.md`."""
    rows = ["| Flag | `pb.build` | Default | Meaning |", "|---|---|---|---|"]
    for f in fields(Options):
        default = {True: "on", False: "off", None: ""}.get(f.default, f.default)
        rows.append(f"| `{flag(f)}` | `{f.name}` | {default} | {f.metadata['help']} |")
    return "\n".join(rows) + "\n"
