"""MathQA's formula language: nested calls of named operations on numbers, as `annotated_formula` writes them.

The operations' meanings are those of their names (Amini et al., NAACL 2019, table of operations); angles do not occur.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

MAX_ARGUMENT = 1e6
"""Above it a factorial, a choice or a power is refused: no answer of a word problem needs it."""

_TOKEN = re.compile(r"\s*(?:(const_\w+(?:\.\d+)?)|([a-z_]+)\s*\(|(-?\d+(?:,\d{3})*(?:\.\d+)?)|([,)]))")
_NAMED = {"const_pi": math.pi, "const_deg_to_rad": math.pi / 180}


class FormulaError(Exception):
    """The text is no formula, or it has no value."""


def value_of(formula: str) -> float:
    """The formula's value. Raises FormulaError for what is no formula and for what cannot be computed."""
    try:
        value, end = _term(formula, 0)
    except RecursionError:
        raise FormulaError("the formula is nested too deeply") from None
    if formula[end:].strip():
        raise FormulaError(f"something follows the formula: {formula[end:]!r}")
    if not math.isfinite(value):
        raise FormulaError("the value is not finite")
    return value


def _term(text: str, start: int) -> tuple[float, int]:
    token = _TOKEN.match(text, start)
    if token is None or token[4]:
        raise FormulaError(f"no term at {text[start : start + 20]!r}")
    if token[1]:
        return _constant(token[1]), token.end()
    if token[3]:
        return float(token[3].replace(",", "")), token.end()
    return _call(token[2], text, token.end())


def _call(name: str, text: str, start: int) -> tuple[float, int]:
    arguments = []
    while True:
        value, start = _term(text, start)
        arguments.append(value)
        mark = _TOKEN.match(text, start)
        if mark is None or not mark[4]:
            raise FormulaError(f"no ',' or ')' at {text[start : start + 20]!r}")
        start = mark.end()
        if mark[4] == ")":
            break
    operation = _OPERATIONS.get(name)
    if operation is None:
        raise FormulaError(f"unknown operation {name!r}")
    try:
        return float(operation(*arguments)), start
    except (ArithmeticError, ValueError, TypeError) as error:
        raise FormulaError(f"{name}{tuple(arguments)}: {error}") from None


def _constant(name: str) -> float:
    """`const_100` is 100, `const_0_2778` is 0.2778."""
    if name in _NAMED:
        return _NAMED[name]
    try:
        return float(name.removeprefix("const_").replace("_", ".", 1))
    except ValueError:
        raise FormulaError(f"unknown constant {name!r}") from None


def _whole(value: float) -> int:
    if value != int(value) or abs(value) > MAX_ARGUMENT:
        raise ValueError(f"{value:g} is no whole number in reach")
    return int(value)


def _factorial(n: float) -> float:
    if n > 170:
        raise OverflowError(f"{n:g}! is out of reach")
    return math.factorial(_whole(n))


def _choose(n: float, k: float) -> float:
    if min(k, n - k) > 1100:
        raise OverflowError(f"{n:g} over {k:g} is out of reach")
    return math.comb(_whole(n), _whole(k))


def _permutation(n: float, k: float) -> float:
    if k > 170:
        raise OverflowError(f"{k:g} of {n:g} is out of reach")
    return math.perm(_whole(n), _whole(k))


def _power(base: float, exponent: float) -> float:
    value: float | complex = base**exponent
    if isinstance(value, complex):
        raise ValueError("the power of a negative number is not real")
    return value


def _heron(a: float, b: float, c: float) -> float:
    half = (a + b + c) / 2
    return math.sqrt(half * (half - a) * (half - b) * (half - c))


_OPERATIONS: dict[str, Callable[..., float]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "power": _power,
    "sqrt": math.sqrt,
    "log": math.log,
    "inverse": lambda a: 1 / a,
    "negate": lambda a: -a,
    "floor": math.floor,
    "max": max,
    "min": min,
    "reminder": lambda a, b: a % b,
    "gcd": lambda a, b: math.gcd(_whole(a), _whole(b)),
    "lcm": lambda a, b: math.lcm(_whole(a), _whole(b)),
    "factorial": _factorial,
    "choose": _choose,
    "permutation": _permutation,
    "negate_prob": lambda p: 1 - p,
    "p_after_gain": lambda percent, price: price * (1 + percent / 100),
    "original_price_before_gain": lambda percent, price: price / (1 + percent / 100),
    "original_price_before_loss": lambda percent, price: price / (1 - percent / 100),
    "speed": lambda distance, time: distance / time,
    "stream_speed": lambda downstream, upstream: (downstream - upstream) / 2,
    "square_area": lambda side: side**2,
    "square_perimeter": lambda side: 4 * side,
    "square_edge_by_area": math.sqrt,
    "square_edge_by_perimeter": lambda perimeter: perimeter / 4,
    "rectangle_area": lambda a, b: a * b,
    "rectangle_perimeter": lambda a, b: 2 * (a + b),
    "rhombus_area": lambda d, e: d * e / 2,
    "rhombus_perimeter": lambda side: 4 * side,
    "quadrilateral_area": lambda diagonal, h, k: diagonal * (h + k) / 2,
    "triangle_area": lambda base, height: base * height / 2,
    "triangle_area_three_edges": _heron,
    "triangle_perimeter": lambda a, b, c: a + b + c,
    "circle_area": lambda r: math.pi * r**2,
    "circumface": lambda r: 2 * math.pi * r,
    "cube_edge_by_volume": lambda volume: volume ** (1 / 3),
    "surface_cube": lambda edge: 6 * edge**2,
    "surface_cylinder": lambda r, h: 2 * math.pi * r * (r + h),
    "surface_rectangular_prism": lambda a, b, c: 2 * (a * b + b * c + a * c),
    "surface_sphere": lambda r: 4 * math.pi * r**2,
    "volume_cone": lambda r, h: math.pi * r**2 * h / 3,
    "volume_cube": lambda edge: edge**3,
    "volume_cylinder": lambda r, h: math.pi * r**2 * h,
    "volume_rectangular_prism": lambda a, b, c: a * b * c,
    "volume_sphere": lambda r: 4 / 3 * math.pi * r**3,
}
