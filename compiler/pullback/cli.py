"""The command line: `pullback build | inspect | train`.

`train` is the runtime's (`pullback_runtime.command`).  LLVM is imported when a script has been traced without errors.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from pullback_runtime.command import Parser, add_train, add_version, guarded
from pullback_runtime.errors import RuntimeFailure

from .config import Options, flag
from .errors import BuildError, PullbackError

if TYPE_CHECKING:
    from .graph.program import Program

_STAGES = ("graph", "gradient", "optimized", "kernels", "schedule", "plan", "memory", "llvm", "asm", "ptx")
_ELF = b"\x7fELF"


def main(argv: list[str] | None = None) -> int:
    """Run one command; status 0, 1 after an error that is explained, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    argv, script_args = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args = _parser().parse_args(argv)
    args.script_args = script_args
    return guarded(lambda: args.run(args), PullbackError, RuntimeFailure)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("pullback", description="A static-graph compiler for differentiable programs.")
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    usage = "pullback %s [options] %s [-- arguments of the script]"

    build = commands.add_parser(
        "build", help="compile a model script into one native training binary", usage=usage % ("build", "SCRIPT")
    )
    build.add_argument("script", type=Path, metavar="SCRIPT")
    build.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: the script's name with .so")
    build.add_argument("--header", type=Path, metavar="FILE", help="also write a C header for the artifact")
    build.add_argument("--dump-dir", type=Path, metavar="FOLDER", help="write every stage and the time of each pass")
    build.add_argument("--timings", action="store_true", help="print the time of each stage and pass")
    build.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    _add_options(build)
    build.set_defaults(run=_build)

    inspect = commands.add_parser(
        "inspect",
        help="print one stage of a script or an artifact",
        usage=usage % ("inspect", "SCRIPT_OR_ARTIFACT"),
        description="Print one stage.  An artifact is shown with the options that it was built with.",
    )
    inspect.add_argument("script", type=Path, metavar="SCRIPT_OR_ARTIFACT")
    inspect.add_argument(
        "--stage",
        choices=(*_STAGES, "sass", "manifest"),
        metavar="STAGE",
        help=f"{' | '.join(_STAGES)} | sass (needs CUDA's tools), of an artifact also manifest (default: graph, "
        "manifest)",
    )
    inspect.add_argument("--function", action="append", default=[], metavar="NAME", help="only this one (repeatable)")
    _add_options(inspect)
    inspect.set_defaults(run=_inspect)

    add_train(commands)
    return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Every field of `Options` is a flag; what it means is said there."""
    parser.add_argument(
        "--dim",
        action="append",
        default=[],
        metavar="[FUNCTION.]NAME=N[,N...]",
        help="bind a named dimension (repeatable); several sizes compile the function several times",
    )
    for f in fields(Options):
        how = {"dest": f.name, "help": ("do not " if f.default is True else "") + f.metadata["help"]}
        if isinstance(f.default, bool):
            parser.add_argument(flag(f), action="store_false" if f.default else "store_true", **how)
        else:
            kind = Path if "Path" in f.type else str
            parser.add_argument(flag(f), type=kind, default=f.default, metavar=f.name.upper(), **how)


def _options(args: argparse.Namespace) -> Options:
    return Options(**{f.name: getattr(args, f.name) for f in fields(Options)})


class _Progress:
    """What is being done, on one line of a terminal; nothing anywhere else."""

    def __init__(self, quiet: bool = False):
        self.shown = not quiet and sys.stderr.isatty()

    def __call__(self, stage: str) -> None:
        if self.shown:
            print(f"\r\033[K{stage} ...", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_) -> None:
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _trace(args: argparse.Namespace) -> Program:
    from .dsl.trace import parse_dims, trace_script

    dims = parse_dims(args.dim)
    _check_script(args.script)
    try:
        return trace_script(args.script, args.script_args, dims)
    except (PullbackError, RuntimeFailure):
        raise
    except Exception as e:  # a script may raise anything
        raise ScriptFailed("the script failed\n" + _traceback(e, str(args.script))) from e


def _check_script(path: Path) -> None:
    """Say what a binary file is, in place of Python's complaint about its bytes."""
    try:
        with path.open("rb") as f:
            head = f.read(4096)
    except OSError:
        return  # tracing says what is wrong
    if head.startswith(_ELF):
        raise BuildError(f"{path} is no Python script but a binary: an artifact is for `pullback inspect` and `train`")
    if b"\0" in head:
        raise BuildError(f"{path} is no Python script: it holds binary data")


def _traceback(error: Exception, script: str) -> str:
    """Python's own message, from the script's first frame on."""
    from traceback import TracebackException

    shown = TracebackException.from_exception(error)
    first = next((k for k, frame in enumerate(shown.stack) if frame.filename == script), len(shown.stack))
    del shown.stack[:first]
    return "".join(shown.format()).rstrip()


class ScriptFailed(PullbackError):
    """The script raised what is not of this package."""


def _build(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    options, out = _options(args), args.output or Path(args.script.stem + ".so")
    if args.header and "cpu" not in options.target:
        raise BuildError(f"--header is of code for processors, but the target is {options.target}")
    with _Progress(args.quiet) as show:
        show("trace")
        program = _trace(args)
        traced = time.perf_counter() - start
        from . import driver

        if args.dump_dir or args.timings:
            build = driver.Build(program, options, show)
            artifact = build.artifact
            build.timings = {"trace": traced, **build.timings}
        else:
            build, artifact = None, driver.compile_program(program, options, on_stage=show)
        _write(out, lambda: driver.write(out, artifact))
        if args.header:
            _write(args.header, lambda: driver.write(args.header, _header(out)))
        if args.dump_dir:
            from .inspect import stages

            _write(args.dump_dir, lambda: stages.dump(build, args.dump_dir))
    if args.timings:
        from .inspect import stages

        print(stages.timings(build), end="")
    if not args.quiet:
        for remark in driver.remarks(program, options):
            print(f"pullback: warning: {remark}", file=sys.stderr)
        names = ", ".join(dict.fromkeys(f.name for f in program.functions if f.name != "init"))
        print(f"{out}: {len(artifact)} bytes, functions {names}, {time.perf_counter() - start:.2f} s")
    return 0


def _write(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as e:
        raise BuildError(f"cannot write {path}: {e.strerror}") from None


def _header(path: Path) -> bytes:
    from pullback_runtime.format import read_manifest

    from .artifact.header import header

    return header(read_manifest(path)).encode()


def _inspect(args: argparse.Namespace) -> int:
    artifact = _is_artifact(args.script)
    stage = args.stage or ("manifest" if artifact else "graph")
    if stage == "manifest" and not artifact:
        raise BuildError(f"{args.script} is no artifact, so it has no manifest; its stages are {', '.join(_STAGES)}")
    if artifact and (args.dim or args.script_args):
        raise BuildError(f"{args.script} is built: --dim and arguments after -- are for scripts")
    if stage == "manifest":
        print(_manifest(args.script))
        return 0
    if artifact:
        from .artifact.reopen import program_of

        program, options = program_of(args.script)
    else:
        program, options = _trace(args), _options(args)
    with _Progress() as show:
        from .driver import Build
        from .inspect import stages

        if args.function:
            program = stages.select(program, args.function)
        text = {**stages.STAGES, **stages.WITH_TOOLS}[stage](Build(program, options, show))
    print(text, end="", flush=True)
    return 0


def _is_artifact(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            return f.read(4) == _ELF
    except OSError as e:
        raise BuildError(f"{path}: {e.strerror}") from None


def _manifest(path: Path) -> str:
    """The manifest as it is in the file, laid out for people."""
    import json

    from pullback_runtime.format import read_manifest

    return json.dumps(json.loads(read_manifest(path).to_json()), indent=2, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
