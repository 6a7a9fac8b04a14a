"""The examples of docs/graph-ir.md and docs/passes.md are true."""

import re

import pages
from pages import blocks
from random_graphs import traced

from pullback import passes
from pullback.dsl import array as xp
from pullback.graph.content import equal
from pullback.graph.graph import Loc, loc_scope
from pullback.graph.text import parse, to_text
from pullback.graph.types import TensorType, f32


def test_text_of_a_layer():
    source, expected = blocks("graph-ir")[0], blocks("graph-ir", "text")[0]
    names = {"xp": xp}
    exec(source, names)
    with loc_scope(Loc("model.py", 2, "layer")):
        g = traced(names["layer"], TensorType(f32, (4, 3)), TensorType(f32, (3, 2)), name="layer")
    assert re.sub(r"(input\(\).*?\])  #.*", r"\1", to_text(g)) == expected
    assert equal(parse(expected), g)


def test_round_trip():
    names = {"graph": traced(lambda x: xp.exp(x) + 1, TensorType(f32, (4,)))}
    exec(blocks("graph-ir")[1], names)
    assert equal(names["again"], names["graph"])


def test_the_pass_works():
    before = traced(lambda x: xp.exp(x) - 1, TensorType(f32, (4,)))
    names = pages.run("passes", {"passes": passes, "before": before})
    assert equal(names["after"], traced(lambda x: xp.expm1(x), TensorType(f32, (4,))))
    untouched = traced(lambda x: xp.exp(x) - 2, TensorType(f32, (4,)))
    assert passes.run(untouched, [names["exp_minus_one"]]) is untouched


def test_every_pass_is_listed():
    page = pages.page("passes")
    assert [p.__name__ for p in passes.PASSES if f"| `{p.__name__}` |" not in page] == []
