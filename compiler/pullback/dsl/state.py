"""State of a model script: named arrays that live between calls of the compiled functions.

A `Variable` is a tensor whose value is looked up in the function being traced: reading it gives the newest
value written there, so program order holds.  Its name in the program is found from the script's variables
(`name_states`), its initial value by `init`, an expression of random numbers keyed by that name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from ..errors import BuildError, DTypeError, ShapeError
from ..graph.graph import NOWHERE, Loc, Node, current_loc
from ..graph.program import SEED, State
from ..graph.types import DType, TensorType, f32, u32
from .array import asarray, full
from .promotion import ArrayLike
from .random import normal, uniform
from .tensor import Tensor
from .trace import active, require

Init = Callable[["Draw"], Tensor]
"""The initial value of a variable as an expression."""


@dataclass(frozen=True)
class Draw:
    """The random numbers of one variable's initial value: keyed by its name, whatever else the model has."""

    seed: Tensor
    name: str
    type: TensorType

    def uniform(self, low: float, high: float, stream: int = 0) -> Tensor:
        """The variable's shape and dtype, uniform in [low, high); other streams have other numbers."""
        return uniform(*self._key, stream, self.type.shape, low, high, dtype=self.type.dtype)

    def normal(self, mean: float, std: float, stream: int = 0) -> Tensor:
        return normal(*self._key, stream, self.type.shape, mean, std, dtype=self.type.dtype)

    @property
    def _key(self) -> tuple[Tensor, Tensor]:
        """The name goes into the key, as data: so all variables of one shape are drawn by one kernel."""
        name = np.frombuffer(blake2b(self.name.encode(), digest_size=8).digest(), "<u4")
        return self.seed ^ asarray(name), full((), 0, dtype=u32)

    def full(self, value: ArrayLike) -> Tensor:
        return full(self.type.shape, value, dtype=self.type.dtype)


class Variable(Tensor):
    """One state.  `kind` as in `graph.program.State`."""

    kind = "parameter"
    copy_of: Variable | None = None

    def __init__(self, type: TensorType, init: Init, loc: Loc | None = None):
        self.type = type
        self.init = init
        self.loc = loc or current_loc()

    @property
    def node(self) -> Node:
        trace = active()
        return (trace or require(f"{self.describe()} is read")).read(self)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def ndim(self) -> int:
        return len(self.type.shape)

    @property
    def size(self) -> int:
        return self.type.size

    def assign(self, value: ArrayLike) -> None:
        """From here on in the function being traced, the variable is `value`; its caller sees it after the call."""
        trace = active() or require(f"{self.describe()} is assigned")
        trace.write(self, self.check(value).node)

    def initialize(self, value: ArrayLike) -> None:
        """Outside of functions: start with this array (or tensor of constants) instead."""
        value = self.check(asarray(value, dtype=self.dtype))
        self.init = lambda draw: value

    def check(self, value: ArrayLike) -> Tensor:
        """The tensor of `value` (arrays, scalars and lists take the variable's dtype); raises unless it has the
        variable's shape and dtype."""
        value = value if isinstance(value, Tensor) else asarray(value, dtype=self.dtype)
        if value.shape != self.shape:
            raise ShapeError(f"{self.describe()} cannot take a value of shape {list(value.shape)}")
        if value.dtype != self.dtype:
            raise DTypeError(f"{self.describe()} cannot take a value of dtype {value.dtype}: convert it with astype")
        return value

    def __deepcopy__(self, memo: dict) -> Variable:
        """Another state that starts with the same values (target networks, moving averages)."""
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__, copy_of=self if self.copy_of is None else self.copy_of)
        memo[id(self)] = copy
        return copy

    def describe(self) -> str:
        """Kind, name and type, for messages."""
        trace = active()
        name = trace.scope.names.get(self) if trace else None
        return f"{self.kind} {f'{name!r} ' if name else ''}{self.type}"

    def __repr__(self) -> str:
        return f"<{self.describe()}>"


class Buffer(Variable):
    """State that is not learned: running statistics, masks, tables."""

    kind = "buffer"

    def __init__(self, data=None, *, type: TensorType | None = None, init: Init | None = None, persistent=True):
        super().__init__(*_initial(data, type, init))
        self.persistent = persistent


class Slot(Variable):
    """An optimizer's memory of one parameter."""

    kind = "slot"


class Counter(Variable):
    """A number that counts calls, from 0."""

    kind = "counter"

    def __init__(self, dtype: DType, loc: Loc | None = None):
        super().__init__(TensorType(dtype, ()), lambda draw: draw.full(0), loc)

    def next(self) -> Tensor:
        """The count so far, which grows by one."""
        now = Tensor(self.node)
        self.assign(now + 1)
        return now


class Hyper(Variable):
    """A run-time scalar that is set between steps without compiling: `lr = pb.hyper("lr", 1e-3)`."""

    kind = "hyper"

    def __init__(self, name: str, value: float, dtype: DType = f32):
        super().__init__(TensorType(dtype, ()), lambda draw: draw.full(value))
        self.name = name


class Parameter(Variable):
    """A learned tensor: `nn.Parameter(pb.zeros((3,)))` or of any array, whose type and values it starts with."""

    def __init__(
        self, data=None, requires_grad: bool = True, *, type: TensorType | None = None, init: Init | None = None
    ):
        super().__init__(*_initial(data, type, init))
        if requires_grad and not self.dtype.is_float:
            raise DTypeError(
                f"a parameter of type {self.type} cannot be learned: expected a float type (write 1.0 for 1), "
                "requires_grad=False, or nn.Buffer"
            )
        self.requires_grad = requires_grad

    def requires_grad_(self, requires_grad: bool = True) -> Parameter:
        """Whether optimizers learn it."""
        self.requires_grad = requires_grad
        return self


def _initial(data, type: TensorType | None, init: Init | None) -> tuple[TensorType, Init]:
    """The type and initial value that data (an array or a tensor made outside of functions) gives."""
    if data is None:
        return type, init
    value = Tensor(asarray(data).node)
    return value.node.type, lambda draw: value


class Stateful(ABC):
    """Something that owns variables: modules, optimizers."""

    names_others = False
    """Whether its variables are named by other variables' names, which must be known before (optimizers)."""

    @abstractmethod
    def named_variables(self, root: str, names: dict[Variable, str]) -> Iterator[tuple[str, Variable]]:
        """Full names below the script's variable `root`; `names` has the modules' variables already."""


@dataclass(frozen=True)
class Scope:
    """The variables of one program: their names, which of them belong together, and the random streams' state."""

    names: dict[Variable, str]
    aliases: dict[Variable, list[str]]
    roots: dict[str, list[Variable]]
    seed: Variable
    rng_step: Counter

    def describe(self, variable: Variable) -> State:
        aliases = tuple(self.aliases.get(variable, ()))
        return State(self.names[variable], variable.type, variable.kind, aliases, variable.loc)


def name_states(namespace: dict[str, object]) -> Scope:
    """Names of everything that the script's variables reach: modules first, as optimizers name slots by parameters.

    The first name of a variable is its own, later ones are aliases (tied weights).
    """
    seed = Variable(TensorType(u32, (2,)), lambda draw: draw.seed, NOWHERE)
    seed.kind = "seed"
    step = Counter(u32, NOWHERE)
    scope = Scope({seed: SEED, step: "rng.step"}, {}, {}, seed, step)
    owners = [(name, x) for root, value in namespace.items() for name, x in _owners(root, value)]
    for root, owner in sorted(owners, key=lambda o: getattr(o[1], "names_others", False)):
        if isinstance(owner, Variable):
            _enter(scope, root, getattr(owner, "name", root), owner)
        else:
            for name, variable in owner.named_variables(root, scope.names):
                _enter(scope, root, name, variable)
    _check_unique(scope)
    return scope


def _owners(name: str, value, within: tuple = ()) -> Iterator[tuple[str, Stateful | Variable]]:
    """What a variable of the script holds, directly or in lists, tuples and dicts (lists of data are passed over)."""
    if isinstance(value, Stateful | Variable):
        yield name, value
        return
    if isinstance(value, list | tuple):
        items = enumerate(value)
    elif type(value) is dict and not name.startswith("__"):
        items = value.items()
    else:
        return
    first = next(iter(value.values() if type(value) is dict else value), None)
    if first is None or isinstance(first, str | bytes | int | float) or any(value is v for v in within):
        return
    for k, x in items:
        yield from _owners(f"{name}.{k}", x, (*within, value))


def _enter(scope: Scope, root: str, name: str, variable: Variable) -> None:
    known = scope.names.setdefault(variable, name)
    if known != name and name not in scope.aliases.setdefault(variable, []):
        scope.aliases[variable].append(name)
    scope.roots.setdefault(root, []).append(variable)


def _check_unique(scope: Scope) -> None:
    owner: dict[str, Variable] = {}
    for variable, name in scope.names.items():
        if name in owner:
            raise BuildError(f"two states named {name!r}: made at {owner[name].loc} and {variable.loc}")
        owner[name] = variable
