"""Element-wise ops whose derivative is zero wherever it exists: rounding, tests, comparisons, bits."""

from __future__ import annotations

from ..errors import DTypeError
from .op import register
from .scalar import Flat


# ---- rounding, tests, comparisons --------------------------------------------------------------------------
@register
class Floor(Flat):
    """The greatest integer not above x."""

    name = "floor"


@register
class Ceil(Flat):
    """The smallest integer not below x."""

    name = "ceil"


@register
class Trunc(Flat):
    """The next integer towards 0."""

    name = "trunc"


@register
class Round(Flat):
    """The nearest integer, ties to even."""

    name = "round"


@register
class SignBit(Flat):
    """Whether the sign bit is set (-0.0 and negative NaN included)."""

    name = "signbit"


@register
class IsNan(Flat):
    """Whether x is NaN."""

    name = "isnan"


@register
class IsInf(Flat):
    """Whether x is an infinity."""

    name = "isinf"


@register
class IsFinite(Flat):
    """Whether x is neither NaN nor an infinity."""

    name = "isfinite"


@register
class Lt(Flat):
    """a < b."""

    name = "lt"


@register
class Le(Flat):
    """a <= b."""

    name = "le"


@register
class Gt(Flat):
    """a > b."""

    name = "gt"


@register
class Ge(Flat):
    """a >= b."""

    name = "ge"


@register
class Eq(Flat):
    """a == b."""

    name = "eq"


@register
class Ne(Flat):
    """a != b."""

    name = "ne"


# ---- bits --------------------------------------------------------------------------------------------------
@register
class And(Flat):
    """Bitwise (bool: logical) and."""

    name = "and"


@register
class Or(Flat):
    """Bitwise (bool: logical) or."""

    name = "or"


@register
class Xor(Flat):
    """Bitwise (bool: logical) exclusive or."""

    name = "xor"


@register
class Not(Flat):
    """Bitwise (bool: logical) not."""

    name = "not"


@register
class Shl(Flat):
    """a << b; 0 where b is negative or not below the width."""

    name = "shl"


@register
class Shr(Flat):
    """a >> b, with the sign; all sign where b is negative or not below the width."""

    name = "shr"


@register
class MulHi(Flat):
    """The upper 32 bits of the 64-bit product of two u32."""

    name = "mulhi"

    def infer(self, a, b):
        if a.dtype.name != "u32":
            raise DTypeError(f"mulhi: expected u32, got {a.dtype}")
        return super().infer(a, b)
