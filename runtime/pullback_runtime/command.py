"""`pullback train`: the command line of machines that run artifacts.  Neither here nor below is the compiler needed.

The other commands are the compiler's; `main` hands them over where it is installed (`python -m pullback_runtime` is
the same program).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from . import __version__
from .errors import DataError, RuntimeFailure
from .program import MOST_THREADS


class Parser(argparse.ArgumentParser):
    """Unknown flags are an error of the subcommand, with its usage; argparse itself hands them up to the program's."""

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


def main(argv: list[str] | None = None) -> int:
    """The program `pullback`: status 0, 1 after an error that is explained in one line, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] != ["train"]:
        try:
            from pullback.cli import main as compiler
        except ModuleNotFoundError as e:
            if (e.name or "").partition(".")[0] not in ("pullback", "llvmlite", "networkx"):
                raise
        else:
            return compiler(argv)
    needs = "build and inspect need the compiler: pip install pullback"
    if argv[:1] in (["build"], ["inspect"]):
        print(f"pullback: {needs}", file=sys.stderr)
        return 1
    parser = Parser("pullback", epilog=needs)
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_train(commands)
    args = parser.parse_args(argv)
    return guarded(lambda: args.run(args), RuntimeFailure)


def guarded(run: Callable[[], int], *errors: type[Exception]) -> int:
    """What `run` returns; mistakes of the user (`errors`) are one line on standard error, without a traceback."""
    try:
        return run()
    except errors as e:
        print(f"pullback: {e}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("pullback: interrupted", file=sys.stderr)
        return 130


def add_version(parser: argparse.ArgumentParser) -> None:
    """The flag `--version`."""
    parser.add_argument("--version", action="version", version=f"pullback {__version__}")


def add_train(commands) -> None:
    """The subcommand `train`."""
    train = commands.add_parser(
        "train",
        help="train an artifact on data files",
        description="Train an artifact on data files.  Loss and metrics are shown after each epoch; with --checkpoint "
        "a run that was stopped, in whatever way, goes on to the same bits.",
    )
    add = train.add_argument
    add("artifact", type=Path)
    add("--data", action="append", required=True, metavar="FILE", help=".npz, .csv, or INPUT=file.npy (repeatable)")
    add("--epochs", type=_count, default=1, metavar="N", help="in all, those before a checkpoint included (default 1)")
    add("--function", default="train", metavar="NAME", help="what to call on each batch (default train)")
    add("--evaluate", metavar="NAME", help="what measures the held-out samples (default evaluate, else predict)")
    add("--validation", type=float, default=0.0, metavar="FRACTION", help="hold out this part of the samples")
    add("--no-shuffle", action="store_true", help="take samples in the order of the files")
    add("--seed", type=_count, default=0, metavar="N", help="of initial state, shuffling and split (default 0)")
    add("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda or cuda:N, for an NVIDIA GPU")
    add("--threads", type=_threads, metavar="N", help="default: one for each processor; the bits do not depend on it")
    add("--checkpoint", type=Path, metavar="FOLDER", help="save there after each epoch, and go on from there")
    add("--checkpoint-every", type=_count, default=0, metavar="STEPS", help="also save after so many steps")
    add("--save", type=Path, metavar="FILE", help="write the final state there, as safetensors")
    add("-q", "--quiet", action="store_true", help="print errors only")
    train.set_defaults(run=_train)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, got {text!r}")
    return int(text)


def _threads(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {MOST_THREADS}, got {text!r}")
    return int(text)


def _train(args: argparse.Namespace) -> int:
    from .data import load_data
    from .files import check_writable
    from .program import load
    from .state import require_safetensors
    from .training import fit, split

    try:
        program = load(args.artifact, seed=args.seed, threads=args.threads, device=args.device)
        if args.save:  # what is wrong with it should not show after the last epoch
            require_safetensors()
            check_writable(args.save)
        for name in filter(None, (args.function, args.evaluate)):
            if name not in program.functions:
                raise DataError(f"{args.artifact} has no function {name!r}: it has {', '.join(program.functions)}")
        data = load_data(args.data, program.functions[args.function].sample_shapes)
        training, validation = split(data, args.validation, args.seed)
        report = (lambda line: None) if args.quiet else print
        history = fit(
            program,
            training,
            epochs=args.epochs,
            function=args.function,
            validation=validation if args.validation else None,
            evaluate=args.evaluate,
            shuffle=not args.no_shuffle,
            seed=args.seed,
            checkpoint=args.checkpoint,
            checkpoint_every=args.checkpoint_every,
            report=report,
            progress=sys.stderr.isatty() and not args.quiet,
        )
        if args.save:
            program.save(args.save)
    except (OSError, ImportError, ValueError) as e:
        if isinstance(e, RuntimeFailure | BrokenPipeError):
            raise
        text = f"{e.filename}: {e.strerror}" if isinstance(e, OSError) and e.strerror else str(e)
        raise DataError(text) from e
    report(f"{history.steps} steps in {history.seconds:.2f} s")
    return 0
