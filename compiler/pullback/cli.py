"""The command line: `pullback build | inspect | train`."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path

from .config import Options
from .errors import BuildError, PullbackError


def main(argv: list[str] | None = None) -> int:
    """Run one command; a mistake of the user is one clear line on standard error and exit status 1."""
    argv = list(sys.argv[1:] if argv is None else argv)
    argv, script_args = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args = _parser().parse_args(argv)
    from pullback_runtime.errors import RuntimeFailure

    try:
        return args.run(args, script_args)
    except (PullbackError, RuntimeFailure) as e:
        print(f"pullback: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pullback: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("pullback", description="A static-graph compiler for differentiable programs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="compile a model script into one native training binary")
    build.add_argument("script", type=Path)
    build.add_argument("-o", "--output", type=Path, help="default: the script's name with .so")
    build.add_argument("--header", type=Path, help="also write a C header for the artifact")
    build.add_argument("--dump-dir", type=Path, help="write the text of every stage and the timings there")
    build.add_argument("--timings", action="store_true", help="print the time of each stage and pass")
    build.add_argument("-q", "--quiet", action="store_true", help="print nothing on success")
    _add_options(build)
    build.set_defaults(run=_build)

    inspect = commands.add_parser("inspect", help="print one stage of a script or an artifact")
    inspect.add_argument("script", type=Path, metavar="SCRIPT_OR_ARTIFACT")
    inspect.add_argument("--stage", default=None, help=f"{' | '.join(_STAGES)}; an artifact also has: manifest")
    inspect.add_argument("--function", action="append", default=[], help="only this function (may be given again)")
    _add_options(inspect)
    inspect.set_defaults(run=_inspect)

    train = commands.add_parser("train", help="train an artifact on data files")
    train.add_argument("artifact", type=Path)
    train.add_argument(
        "--data", action="append", required=True, help=".npz, .csv or NAME=file.npy (may be given again)"
    )
    train.add_argument("--epochs", type=int, default=1)
    train.add_argument("--function", default="train")
    train.add_argument("--evaluate", help="the function for validation (default: evaluate, else predict)")
    train.add_argument(
        "--validation", type=float, default=0.0, metavar="FRACTION", help="hold out this part of the data"
    )
    train.add_argument("--no-shuffle", action="store_true")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--threads", type=int)
    train.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="save there, and resume from there")
    train.add_argument("--checkpoint-every", type=int, default=0, metavar="STEPS", help="also between epochs")
    train.add_argument("--save", type=Path, help="write the final state as safetensors")
    train.set_defaults(run=_train)
    return parser


_STAGES = ("graph", "gradient", "optimized", "kernels", "schedule", "plan", "memory", "llvm", "asm")


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Every field of `Options` is a flag; what it means is said there."""
    parser.add_argument(
        "--dim",
        action="append",
        default=[],
        metavar="[FUNCTION.]NAME=N[,N...]",
        help="bind a named dimension; several sizes compile the function several times",
    )
    for f in fields(Options):
        flag = f.name.replace("_", "-")
        if f.type == "bool":
            default = f.default if f.default is not MISSING else False
            parser.add_argument(
                f"--no-{flag}" if default else f"--{flag}",
                dest=f.name,
                action="store_false" if default else "store_true",
            )
        else:
            parser.add_argument(f"--{flag}", dest=f.name, default=f.default, type=Path if "Path" in f.type else str)


def _options(args: argparse.Namespace) -> Options:
    return Options(**{f.name: getattr(args, f.name) for f in fields(Options)})


def _trace(args: argparse.Namespace, script_args: list[str]):
    from .dsl.trace import parse_dims, trace_script

    if not args.script.exists():
        raise BuildError(f"no such file: {args.script}")
    return trace_script(args.script, script_args, parse_dims(args.dim))


def _build(args: argparse.Namespace, script_args: list[str]) -> int:
    from . import driver
    from .inspect import stages

    start = time.perf_counter()
    quiet = args.quiet or not sys.stderr.isatty()
    program = _trace(args, script_args)
    traced = time.perf_counter() - start
    options, out = _options(args), args.output or args.script.with_suffix(".so")

    def show(stage: str) -> None:
        if not quiet:
            print(f"\r\033[K{stage} ...", end="", file=sys.stderr, flush=True)

    if args.dump_dir or args.timings:
        build = driver.Build(program, options, show)
        artifact = build.artifact
        build.timings = {"trace": traced, **build.timings}
        if args.dump_dir:
            stages.dump(build, args.dump_dir)
        if args.timings:
            print(stages.timings(build), end="")
    else:
        artifact = driver.compile_program(program, options, on_stage=show)
    if not quiet:
        print("\r\033[K", end="", file=sys.stderr)
    driver.write(out, artifact)
    if args.header:
        from .artifact.header import header

        driver.write(args.header, header(artifact).encode())
    if not args.quiet:
        names = ", ".join(dict.fromkeys(f.name for f in program.functions if f.name != "init"))
        print(f"{out}: {len(artifact)} bytes, functions {names}, {time.perf_counter() - start:.2f} s")
    return 0


def _inspect(args: argparse.Namespace, script_args: list[str]) -> int:
    from .driver import Build
    from .inspect import stages

    is_artifact = args.script.exists() and args.script.read_bytes()[:4] == b"\x7fELF"
    stage = args.stage or ("manifest" if is_artifact else "graph")
    if (stage != "manifest" and stage not in _STAGES) or (stage == "manifest" and not is_artifact):
        raise BuildError(f"unknown stage {stage!r}: one of {', '.join(_STAGES)}" + ", manifest" * is_artifact)
    if is_artifact:
        import json

        from .artifact.reopen import manifest_of, program_of

        if stage == "manifest":
            print(json.dumps(manifest_of(args.script), indent=2))
            return 0
        program, options = program_of(args.script)
    else:
        program, options = _trace(args, script_args), _options(args)
    if args.function:
        program = stages.select(program, args.function)
    print(stages.STAGES[stage](Build(program, options)), end="")
    return 0


def _train(args: argparse.Namespace, script_args: list[str]) -> int:
    import pullback_runtime as rt
    from pullback_runtime.data import load_data
    from pullback_runtime.training import fit, split

    program = rt.load(args.artifact, seed=args.seed, threads=args.threads)
    if not hasattr(program, args.function):
        raise BuildError(f"{args.artifact} has no function {args.function!r}: it has {', '.join(program.functions)}")
    call = getattr(program, args.function)
    data = load_data(args.data, call.sample_shapes)
    training, validation = split(data, args.validation, args.seed)
    history = fit(
        program,
        training,
        epochs=args.epochs,
        function=args.function,
        validation=validation,
        evaluate=args.evaluate,
        shuffle=not args.no_shuffle,
        seed=args.seed,
        checkpoint=args.checkpoint,
        checkpoint_every=args.checkpoint_every,
        progress=sys.stderr.isatty(),
    )
    if args.save:
        program.save(args.save)
    print(f"{history.steps} steps in {history.seconds:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
