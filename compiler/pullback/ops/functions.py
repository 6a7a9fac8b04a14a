"""Element-wise functions of one real number: powers, exponentials, logarithms, angles."""

from __future__ import annotations

import math

from . import rules as F
from .op import register
from .scalar import Scalar


# ---- powers, exponentials, logarithms ----------------------------------------------------------------------
@register
class Sqrt(Scalar):
    """The square root; NaN below 0."""

    name = "sqrt"

    def partials(self, out, x):
        return (0.5 / out,)


@register
class Exp(Scalar):
    """e ** x."""

    name = "exp"

    def partials(self, out, x):
        return (out,)


@register
class Expm1(Scalar):
    """e ** x - 1, exact near 0."""

    name = "expm1"

    def partials(self, out, x):
        return (out + 1.0,)


@register
class Log(Scalar):
    """The natural logarithm."""

    name = "log"

    def partials(self, out, x):
        return (1.0 / x,)

    def vjp(self, out, inputs, ct):
        return (ct / inputs[0],)


@register
class Log1p(Scalar):
    """log(1 + x), exact near 0."""

    name = "log1p"

    def partials(self, out, x):
        return (1.0 / (x + 1.0),)


@register
class Log2(Scalar):
    """The logarithm to base 2."""

    name = "log2"

    def partials(self, out, x):
        return (1.0 / (x * math.log(2.0)),)


@register
class Log10(Scalar):
    """The logarithm to base 10."""

    name = "log10"

    def partials(self, out, x):
        return (1.0 / (x * math.log(10.0)),)


# ---- trigonometric and hyperbolic --------------------------------------------------------------------------
@register
class Sin(Scalar):
    """sin x (radians)."""

    name = "sin"

    def partials(self, out, x):
        return (F.cos(x),)


@register
class Cos(Scalar):
    """cos x (radians)."""

    name = "cos"

    def partials(self, out, x):
        return (-F.sin(x),)


@register
class Tan(Scalar):
    """tan x (radians)."""

    name = "tan"

    def partials(self, out, x):
        return (1.0 + out * out,)


@register
class Asin(Scalar):
    """The angle in [-pi/2, pi/2] whose sine is x."""

    name = "asin"

    def partials(self, out, x):
        return (1.0 / F.sqrt((1.0 - x) * (1.0 + x)),)


@register
class Acos(Scalar):
    """The angle in [0, pi] whose cosine is x."""

    name = "acos"

    def partials(self, out, x):
        return (-1.0 / F.sqrt((1.0 - x) * (1.0 + x)),)


@register
class Atan(Scalar):
    """The angle in [-pi/2, pi/2] whose tangent is x."""

    name = "atan"

    def partials(self, out, x):
        return (1.0 / (1.0 + x * x),)


@register
class Sinh(Scalar):
    """The hyperbolic sine."""

    name = "sinh"

    def partials(self, out, x):
        return (F.cosh(x),)


@register
class Cosh(Scalar):
    """The hyperbolic cosine."""

    name = "cosh"

    def partials(self, out, x):
        return (F.sinh(x),)


@register
class Tanh(Scalar):
    """The hyperbolic tangent."""

    name = "tanh"

    def partials(self, out, x):
        return (1.0 - out * out,)


@register
class Asinh(Scalar):
    """The inverse of sinh."""

    name = "asinh"

    def partials(self, out, x):
        return (1.0 / F.sqrt(x * x + 1.0),)


@register
class Acosh(Scalar):
    """The inverse of cosh, for x >= 1."""

    name = "acosh"

    def partials(self, out, x):
        return (1.0 / F.sqrt((x - 1.0) * (x + 1.0)),)


@register
class Atanh(Scalar):
    """The inverse of tanh, for |x| <= 1."""

    name = "atanh"

    def partials(self, out, x):
        return (1.0 / ((1.0 - x) * (1.0 + x)),)


@register
class Erf(Scalar):
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""

    name = "erf"

    def partials(self, out, x):
        return (F.exp(-(x * x)) * (2.0 / math.sqrt(math.pi)),)
