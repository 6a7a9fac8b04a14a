"""Runs traced programs on the graph evaluator: what tests of the DSL use in place of compiled code."""

from __future__ import annotations

import numpy as np

import pullback as pb
from pullback.dsl.pytree import tree_leaves, unflatten
from pullback.dsl.trace import trace_functions
from pullback.graph.evaluate import evaluate_function
from pullback.graph.program import Function, Program


class Interpreter:
    """A program and its state; functions are called by name on arrays, results keep their structure."""

    def __init__(self, program: Program, seed: int = 0):
        self.program = program
        self.state = {"rng.seed": np.array([seed, 0], np.uint32)}
        _, self.state = evaluate_function(program, "init", self.state, [])

    def function(self, name: str) -> Function:
        return next(f for f in self.program.functions if f.name == name)

    def __call__(self, name: str, *arguments):
        f = self.function(name)
        results, self.state = evaluate_function(self.program, f, self.state, tree_leaves(list(arguments)))
        return unflatten(f.outputs, results)


def interpret(*functions, seed: int = 0, **dims) -> Interpreter:
    return Interpreter(trace_functions(functions, dims=dims), seed)


def run(fn, *arrays, training: bool | None = None):
    """Trace `fn` for these arrays and evaluate it once."""
    specs = tuple(spec_of(a) for a in arrays)

    @pb.function(specs, training=training, name="fn")
    def call(xs):
        return fn(*xs)

    return interpret(call)("fn", arrays)


def spec_of(array: np.ndarray) -> pb.Spec:
    dtype = next(d for d in pb.DTYPES.values() if d.numpy == array.dtype)
    return dtype[tuple(array.shape)]
