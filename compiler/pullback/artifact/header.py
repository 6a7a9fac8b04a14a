"""The C header of an artifact: the ABI, and one typed function and the state offsets for each of its own names.

The ABI part is the same for every artifact; `header(manifest)` adds what this one holds.  The text is plain C99
and C++.
"""

from __future__ import annotations

import re

from pullback_runtime.format import Array, Function, Manifest

from ..codegen.native_layout import ABI, Block, Context, Options, Sizes, Status

ABI_TEXT = f"""\
/* An artifact of Pullback {ABI}.  Link with it, or dlopen it: it needs the C library only.
 *
 * All memory is the caller's: ask pb_sizes, allocate four blocks aligned to 64 bytes (state zeroed), pb_open.
 * One context is one state; calls on one context wait for each other, contexts are independent.
 * A step that fails or is stopped leaves state as it was before it. */

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define PB_ABI {ABI}
#define PB_OK {Status.OK}            /* the step ran to its end */
#define PB_CHECK {Status.CHECK}         /* an index was out of range: see launch, call, site, value */
#define PB_STOPPED {Status.STOPPED}       /* *options.stop was not zero before the step's commit point */
#define PB_INJECTED {Status.INJECTED}      /* options.inject asked for it */
#define PB_ARGUMENT {Status.ARGUMENT}      /* pb_call: array number `value` is not what the function takes */
#define PB_NO_CONTEXT ({Status.NO_CONTEXT})   /* not opened, or closed */
#define PB_NO_FUNCTION ({Status.NO_FUNCTION})
#define PB_NO_MEMORY ({Status.NO_MEMORY})
#define PB_NO_LEVEL ({Status.NO_LEVEL})     /* this processor lacks what the code needs */
#define PB_NO_OPTIONS ({Status.NO_OPTIONS})   /* pb_open: options.size is wrong */

typedef struct {{ uint64_t opaque[{Context.SIZE // 8}]; }} pb_context;

/* Zero means the default for every field but the memory. */
typedef struct {{
  uint64_t size;                  /* sizeof(pb_options) */
  void *state, *arena, *scratch;
  const volatile uint8_t *stop;   /* a step ends early when this byte is not zero */
  int64_t threads;                /* 0: one for each processor that this process may use */
  int64_t level;                  /* 0: the best instruction set that the processor has; else its number from 1 */
  int64_t inject;                 /* for tests: n + 1 stops each step after n launches */
}} pb_options;

typedef struct {{ uint64_t context, state, arena, scratch; }} pb_sizes_t;

typedef struct {{
  int64_t code;                   /* PB_OK, ... */
  int64_t launch, call, site;     /* where a check failed: the manifest names them */
  int64_t value;                  /* the value that failed it */
  int64_t reserved[2];
}} pb_status;

uint32_t pb_abi(void);                                          /* PB_ABI */
const char *pb_manifest(size_t *length);                        /* JSON, not terminated */
uint64_t pb_features(void);                                     /* of this processor */
int64_t pb_level(void);                                         /* best usable instruction set from 0, or -1 */
int64_t pb_sizes(const pb_options *, pb_sizes_t *);             /* looks at threads and level only */
int64_t pb_open(pb_context *, const pb_options *);
int64_t pb_init(pb_context *, uint64_t seed, pb_status *);      /* initial state */
int64_t pb_run(pb_context *, int64_t function, void *const *inputs_then_outputs, pb_status *);
void *pb_state(pb_context *);
void pb_close(pb_context *);                                    /* stops the threads; no step may be running */

/* pb_run on arrays as numpy describes them (PyArrayInterface), checked against the function's types. */
typedef struct {{
  pb_context *context;
  int64_t function;
  const void *const *array_interfaces;
  pb_status *status;
}} pb_call_block;
int64_t pb_call(const pb_call_block *);

/* For the Python runtime: pb_call as a builtin function, after CPython's functions were told. */
void pb_python(void *const functions[4]);
void *pb_call_python(void *self, void *const *capsules, int64_t count);
"""

_SIZES = {"pb_options": Options.SIZE, "pb_sizes_t": Sizes.SIZE, "pb_status": Status.SIZE, "pb_call_block": Block.SIZE}

_C_TYPE = {
    "f64": "double", "f32": "float", "bf16": "uint16_t", "f16": "uint16_t", "i64": "int64_t", "i32": "int32_t",
    "i8": "int8_t", "u32": "uint32_t", "u8": "uint8_t", "bool": "uint8_t",
}  # fmt: skip


def header(manifest: Manifest) -> str:
    """The header of one artifact."""
    guard = f"PB_{_identifier(manifest.name).upper()}_H"
    functions = _function_names(manifest)
    parts = [f"#ifndef {guard}\n#define {guard}\n", ABI_TEXT]
    for i, (name, f) in enumerate(zip(functions, manifest.functions, strict=True)):
        parts.append(_function(name, i, f))
    parts.append("/* Where states lie: bytes from pb_state(); elements may be strided, see the comments. */")
    for s in manifest.state:
        strides = f", strides {list(s.strides)}" if list(s.strides) != _contiguous(s.shape) else ""
        macro = f"PB_STATE_{_identifier(s.name).upper()}"
        parts.append(f"#define {macro} {s.offset}  /* {s.name}: {s.kind} {s.dtype}{list(s.shape)}{strides} */")
    parts.append("\n#ifdef __cplusplus\n}\n#endif\n#endif\n")
    return "\n".join(parts)


def _function(name: str, number: int, f: Function) -> str:
    """An inline function with typed parameters."""
    inputs = [(f"const {_C_TYPE[a.dtype]} *{_identifier(a.name)}", a) for a in f.arguments]
    outputs = [(f"{_C_TYPE[a.dtype]} *{_identifier(a.name)}", a) for a in f.results]
    parameters = ", ".join(["pb_context *pb_ctx", *(t for t, _ in inputs + outputs), "pb_status *pb_result"])
    arrays = ", ".join(f"(void *){_identifier(a.name)}" for _, a in inputs + outputs) or "0"
    return (
        f"#define PB_FUNCTION_{name.upper()} {number}\n"
        f"/* {_line(f.arguments)} -> {_line(f.results)} */\n"
        f"static inline int64_t pb_{name}({parameters}) {{\n"
        f"  void *const pb_arrays[] = {{{arrays}}};\n"
        f"  return pb_run(pb_ctx, {number}, pb_arrays, pb_result);\n"
        f"}}\n"
    )


def _line(arrays: tuple[Array, ...]) -> str:
    return ", ".join(f"{a.name}: {a}" for a in arrays) or "()"


def _function_names(manifest: Manifest) -> list[str]:
    """A C name for each function: its own, with its dimensions where several share it."""
    names = [f.name for f in manifest.functions]
    out = []
    for f in manifest.functions:
        dims = "".join(f"_{k}{v}" for k, v in f.dims.items()) if names.count(f.name) > 1 else ""
        name = _identifier(f.name + dims)
        taken = {*out, "abi", "manifest", "features", "level", "sizes", "open", "init", "run", "state", "close", "call"}
        while name in taken:
            name += "_"
        out.append(name)
    return out


def _identifier(text: str) -> str:
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    return f"_{name}" if name[:1].isdigit() else name


def _contiguous(shape: tuple[int, ...]) -> list[int]:
    strides, n = [], 1
    for d in reversed(shape):
        strides.append(n)
        n *= max(d, 1)
    return strides[::-1]


def struct_sizes() -> dict[str, int]:
    """What sizeof must give for each struct of the header, for the test that compiles it."""
    return dict(_SIZES)
