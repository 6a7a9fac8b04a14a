"""`nn.Module`: layers own parameters, buffers and other layers; names follow attributes, as in torch.nn."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView

from ...errors import TraceError
from ...graph.types import DType, TensorType, f32
from ..promotion import ArrayLike
from ..pytree import Tree
from ..state import Buffer, Parameter, Stateful, Variable
from ..trace import active


class Module(Stateful):
    """Base of layers and models.  Define `__call__`, or `forward` as in torch; `super().__init__()` may be left out.

    Parameters, buffers and modules are found in attributes and in lists, tuples and dicts there.  Assigning a
    tensor to an attribute that holds a variable, inside a function, writes the variable.
    """

    _trains = True  # False after eval()

    def __call__(self, *args, **kwargs):
        forward = getattr(self, "forward", None)
        if forward is None:
            raise TraceError(f"{type(self).__name__} defines neither __call__ nor forward")
        return forward(*args, **kwargs)

    def __setattr__(self, name: str, value) -> None:
        old = self.__dict__.get(name)
        if not isinstance(old, Variable) or value is None:
            super().__setattr__(name, value)
        elif active() is not None:
            old.assign(value)
        elif isinstance(value, Variable):
            super().__setattr__(name, value)
        else:
            old.initialize(value)

    # what it owns

    def _members(self) -> Iterable[tuple[str, object]]:
        return vars(self).items()

    def _walk(self, prefix: str = "", path: tuple[Module, ...] = ()) -> Iterator[tuple[str, Module | Variable]]:
        """All modules and variables below, every way to reach one (a module that contains itself: once)."""
        yield prefix, self
        for name, value in self._members():
            yield from _walk(value, _join(prefix, name), (*path, self))

    def named_variables(self, root: str, names: dict[Variable, str]) -> Iterator[tuple[str, Variable]]:
        return ((name, x) for name, x in self._walk(root) if isinstance(x, Variable))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Each module below once, itself included."""
        seen: set[Module] = set()
        for name, x in self._walk(prefix):
            if isinstance(x, Module) and x not in seen:
                seen.add(x)
                yield name, x

    def modules(self) -> Iterator[Module]:
        return (m for _, m in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return ((name, m) for name, m in self._members() if isinstance(m, Module))

    def children(self) -> Iterator[Module]:
        return (m for _, m in self.named_children())

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Each parameter once, by its first name."""
        return self._named(Parameter, prefix)

    def parameters(self) -> Iterator[Parameter]:
        return (p for _, p in self.named_parameters())

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Buffer]]:
        return self._named(Buffer, prefix)

    def buffers(self) -> Iterator[Buffer]:
        return (b for _, b in self.named_buffers())

    def _named(self, kind: type, prefix: str) -> Iterator:
        seen: set[Variable] = set()
        for name, x in self._walk(prefix):
            if isinstance(x, kind) and x not in seen:
                seen.add(x)
                yield name, x

    def state_dict(self) -> dict[str, Variable]:
        """Parameters and persistent buffers by their names in torch (a tied weight by every name)."""
        return {
            name: x for name, x in self._walk() if isinstance(x, Parameter) or (isinstance(x, Buffer) and x.persistent)
        }

    # what it is given

    def register_buffer(self, name: str, tensor: ArrayLike | None, persistent: bool = True) -> None:
        """State that is not learned, such as a running mean; `persistent=False` keeps it out of state_dict."""
        value = tensor if tensor is None or isinstance(tensor, Buffer) else Buffer(tensor, persistent=persistent)
        object.__setattr__(self, name, value)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        object.__setattr__(self, name, param)

    def register_module(self, name: str, module: Module | None) -> None:
        object.__setattr__(self, name, module)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Whether optimizers made from here on learn its parameters."""
        for p in self.parameters():
            p.requires_grad = requires_grad
        return self

    def apply(self, fn: Callable[[Module], object]) -> Module:
        """Call `fn` on each module below and on this one (for initialisation)."""
        for m in reversed(list(self.modules())):
            fn(m)
        return self

    # mode

    @property
    def training(self) -> bool:
        """Whether layers behave as in training: in a function its mode, unless `eval()` froze this module."""
        trace = active()
        return self._trains and (trace is None or trace.trains())

    @training.setter
    def training(self, mode: bool) -> None:
        trace = active()
        if trace is not None:
            trace.remember_mode(self, self._trains)
        object.__setattr__(self, "_trains", bool(mode))

    def train(self, mode: bool = True) -> Module:
        """Layers below follow the mode of the function that they run in (`mode=False`: they never train)."""
        for m in self.modules():
            m.training = mode
        return self

    def eval(self) -> Module:
        """Freeze the layers below in evaluation mode, also in functions with training=True."""
        return self.train(False)

    def extra_repr(self) -> str:
        return ""

    def __repr__(self) -> str:
        inner = "".join(f"\n  ({name}): " + repr(m).replace("\n", "\n  ") for name, m in self.named_children())
        return f"{type(self).__name__}({self.extra_repr()}{inner}{chr(10) if inner else ''})"


def _join(prefix: str, name) -> str:
    return f"{prefix}.{name}" if prefix else str(name)


def _walk(value, prefix: str, path: tuple[Module, ...]) -> Iterator[tuple[str, Module | Variable]]:
    if isinstance(value, Variable):
        yield prefix, value
    elif isinstance(value, Module):
        if not any(value is m for m in path):
            yield from value._walk(prefix, path)
    elif isinstance(value, list | tuple):
        for i, x in enumerate(value):
            yield from _walk(x, f"{prefix}.{i}", path)
    elif type(value) is dict:
        for k, x in value.items():
            yield from _walk(x, f"{prefix}.{k}", path)


class ModuleList(Module):
    """Modules in a list; their names are their positions."""

    def __init__(self, modules: Iterable[Module] = ()):
        self._items = list(modules)

    def _members(self):
        return ((str(i), m) for i, m in enumerate(self._items))

    def append(self, module: Module) -> ModuleList:
        self._items.append(module)
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        self._items.extend(modules)
        return self

    def insert(self, index: int, module: Module) -> None:
        self._items.insert(index, module)

    def __getitem__(self, index):
        return ModuleList(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __setitem__(self, index: int, module: Module) -> None:
        self._items[index] = module

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items)


class ModuleDict(Module):
    """Modules by key; their names are their keys."""

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()):
        self._items = dict(modules)

    def _members(self):
        return self._items.items()

    def __getitem__(self, key: str) -> Module:
        return self._items[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self._items[key] = module

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def keys(self) -> KeysView[str]:
        return self._items.keys()

    def values(self) -> ValuesView[Module]:
        return self._items.values()

    def items(self) -> ItemsView[str, Module]:
        return self._items.items()


class Sequential(Module):
    """Modules (or functions) one after the other; named by position, or by the keys of one dict."""

    def __init__(self, *modules):
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            self._items = dict(modules[0])
        else:
            self._items = {str(i): m for i, m in enumerate(modules)}

    def _members(self):
        return self._items.items()

    def __call__(self, input):
        for module in self._items.values():
            input = module(input)
        return input

    def append(self, module: Callable) -> Sequential:
        self._items[str(len(self._items))] = module
        return self

    def __getitem__(self, index):
        values = list(self._items.values())[index]
        return Sequential(*values) if isinstance(index, slice) else values

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items.values())


def functional_call(module: Module, params: Mapping[str, ArrayLike], *args, **kwargs) -> Tree:
    """Run `module` with other parameters, by name: `pb.functional_call(model, {"hidden.weight": w}, x)`.

    Names missing in `params` keep their values (MAML, moving averages; as torch.func.functional_call).
    """
    trace = active()
    if trace is None:
        raise TraceError("functional_call outside of a function")
    known = module.state_dict()
    values = {}
    for name, value in params.items():
        if name not in known:
            raise TraceError(
                f"functional_call: {name!r} is no state of {type(module).__name__}; it has {', '.join(known)}"
            )
        variable = known[name]
        values[variable] = variable.check(value).node
    with trace.substituted(values):
        return module(*args, **kwargs)


def parameter(shape: tuple[int, ...], dtype: DType | None = None) -> Parameter:
    """A layer's parameter, f32 unless said otherwise; zeros until an initialiser says how it starts."""
    return Parameter(type=TensorType(dtype or f32, tuple(shape)), init=lambda draw: draw.full(0))
