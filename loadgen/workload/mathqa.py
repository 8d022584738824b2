"""MathQA in its published schema: problems with five options and an operation program, as one JSON array or as the
hub's Parquet, gzip around either; and the program's language: nested calls of named operations on numbers.

Source: Amini et al., NAACL 2019; the files as github.com/shaigue/mathqa keeps them, 2985 test and 4475 dev rows.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from loadgen.errors import UsageError
from loadgen.workload.item import Item
from loadgen.workload.published import PublishedFile
from loadgen.workload.questions import rows

MAX_ARGUMENT = 1e6
"""A factorial, a choice or a power above it is refused: no word problem needs it."""

_TOKEN = re.compile(r"\s*(?:(const_\w+(?:\.\d+)?)|([a-z_]+)\s*\(|(-?\d+(?:,\d{3})*(?:\.\d+)?)|([,)]))")
_NAMED = {"const_pi": math.pi, "const_deg_to_rad": math.pi / 180}


class FormulaError(Exception):
    """The text is not a formula, or it has no value."""


def value_of(formula: str) -> float:
    """The formula's value. Raises FormulaError for what is not a formula and for what cannot be computed."""
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
        raise ValueError(f"{value:g} is not a whole number, or too large")
    return int(value)


def _up_to(most: int, count: float, value: Callable[[], int]) -> float:
    """The value, worked out only where `count` factors are not too many for a float."""
    if count > most:
        raise OverflowError(f"{count:g} factors are too many")
    return value()


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
    "factorial": lambda n: _up_to(170, n, lambda: math.factorial(_whole(n))),
    "choose": lambda n, k: _up_to(1100, min(k, n - k), lambda: math.comb(_whole(n), _whole(k))),
    "permutation": lambda n, k: _up_to(170, k, lambda: math.perm(_whole(n), _whole(k))),
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


_FOLDER = "https://raw.githubusercontent.com/shaigue/mathqa/175079e579ae1948a80a948c4b00c43d082ddb2e/data/MathQA"
TEST = PublishedFile(
    "mathqa_test.json",
    f"{_FOLDER}/test.json",
    "dfe7bc4691caf26842ccd4cf14e8f978327bab4f2989e0b076a4e6b38a9371d1",
    2_346_754,
)
DEV = PublishedFile(
    "mathqa_dev.json",
    f"{_FOLDER}/dev.json",
    "aeca12424fc8f32d0e35c09b7738986a446c12f110c8071f3cc8913712f04bf3",
    3_505_596,
)
CLEAN_TEST_IDS_SHA256 = "f7ec473459927015bd9246e58f9783d0aae06ec3d1fdb6d92f55a6022a1d1542"
"""`ids_sha256` of the 1892 items of `mathqa:clean` in the published test split: no change goes unnoticed."""
LETTERS = "ABCDE"
IDENTICAL = "identical options"
"""The flaw of a row with two options that read the same."""
TOLERANCE = 0.01
"""How far, as a share of the published answer, a formula may be off and still agree: options are rounded."""

_OPTION = re.compile(r"\s*([a-e]) \) (.*)", re.DOTALL)
_FLAT = re.compile(r"a \) (?>(.+?) , b \) )(?>(.+?) , c \) )(?>(.+?) , d \) )(?>(.+?) , e \) )(.+)")
_NUMBER = re.compile(
    r"(?P<sign>[-–−]\s*)?(?P<number>\d[\d,]*(?:\.\d+)?|\.\d+)"
    r"(?:\s+(?P<part>\d+)\s*[/⁄]\s*(?P<parts>\d+)|\s*[/⁄:]\s*(?P<below>\d[\d,]*(?:\.\d+)?))?"
)


class Row(msgspec.Struct):
    problem: str = msgspec.field(name="Problem")
    rationale: str = msgspec.field(name="Rationale")
    options: str
    correct: str
    annotated_formula: str
    linear_formula: str


def read_mathqa(path: Path, *, split: str = "test") -> list[Item]:
    """The file's rows in their order, ids `mathqa-<split>-<row>`, `gold` an upper-case letter.

    `steps` are the operations of `linear_formula`; `accepted` names every letter whose option reads as the gold one's,
    `flaws` says so where any two options do.
    Raises UsageError naming the row that is not in the published schema.
    """
    return [_item(path, split, number, row) for number, row in enumerate(_rows(path))]


def read_clean(path: Path, *, split: str = "test") -> list[Item]:
    """The items of `read_mathqa` whose `annotated_formula` comes to the gold option's number, within `TOLERANCE`, and
    no two options of which are the same.

    In the published test split these are always the rows of `CLEAN_TEST_IDS_SHA256`.
    """
    return [
        item
        for item, row in zip(read_mathqa(path, split=split), _rows(path), strict=True)
        if IDENTICAL not in item.flaws and agrees(row.annotated_formula, item.options[LETTERS.index(item.gold)])
    ]


def agrees(formula: str, option: str) -> bool:
    """Whether the formula has a value and it is the option's number, within `TOLERANCE` of that number."""
    published = option_value(option)
    if published is None:
        return False
    try:
        return math.isclose(value_of(formula), published, rel_tol=0, abs_tol=TOLERANCE * abs(published) + 1e-9)
    except FormulaError:
        return False


def option_value(option: str) -> float | None:
    """The first number of an option: fractions and ratios divided, mixed numbers added; None where there is none."""
    found = _NUMBER.search(option)
    if found is None:
        return None
    value = float(found["number"].replace(",", ""))
    try:
        if found["part"]:
            value += int(found["part"]) / int(found["parts"])
        elif found["below"]:
            value /= float(found["below"].replace(",", ""))
    except ZeroDivisionError:
        return None
    return -value if found["sign"] else value


def split_options(published: str) -> tuple[str, ...] | None:
    """The five option texts of a row; None where there are not five.

    Three forms occur: `a ) 1 , b ) 2 , ...`; the same with the letter doubled (`a ) a ) 1`), in some rows not
    throughout; and a Python list of the single options.
    """
    if published.lstrip().startswith("["):
        try:
            parts = ast.literal_eval(published)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return None
        if not isinstance(parts, list):
            return None
        matches = [match for part in parts if isinstance(part, str) and (match := _OPTION.fullmatch(part))]
        letters = "".join(match[1] for match in matches)
        texts = [str(match[2]) for match in matches]
    else:
        letters, texts = "abcde", _split_flat(published.strip())
    if letters != "abcde" or len(texts) != len(LETTERS):
        return None
    return tuple(text.strip().removeprefix(f"{letter} ) ").strip() for letter, text in zip(letters, texts, strict=True))


def _split_flat(text: str) -> list[str]:
    """The texts of `a ) 1 , b ) 2 , ...`, each up to the next letter's first mark; none where one is missing."""
    found = _FLAT.fullmatch(text)
    return list(found.groups()) if found else []


def ids_sha256(items: Iterable[Item]) -> str:
    """Hex sha256 of the items' ids, one a line."""
    return hashlib.sha256("\n".join(item.id for item in items).encode()).hexdigest()


def _rows(path: Path) -> Sequence[Row]:
    what = "MathQA; each row must have the published Problem, Rationale, options, correct and formulas"
    found = [row for _, row in rows(path, Row, what)]
    if not found:
        raise UsageError(f"{path} holds no question; give MathQA's published JSON")
    return found


def _item(path: Path, split: str, number: int, row: Row) -> Item:
    options = split_options(row.options)
    if options is None:
        raise UsageError(f"{path}, row {number}: {row.options[:60]!r} does not list five options; is this MathQA?")
    gold = row.correct.strip().upper()
    if len(gold) != 1 or gold not in LETTERS:
        raise UsageError(f"{path}, row {number}: {row.correct!r} is not a letter from a to e; is this MathQA?")
    texts = [" ".join(option.split()) for option in options]
    right = texts[LETTERS.index(gold)]
    same = tuple(letter for letter, text in zip(LETTERS, texts, strict=True) if text == right)
    return Item(
        id=f"mathqa-{split}-{number:04d}",
        question=row.problem,
        solution=row.rationale,
        gold=gold,
        options=options,
        accepted=same if len(same) > 1 else (),
        flaws=(IDENTICAL,) if len({text.lower() for text in texts}) < len(texts) else (),
        steps=sum(1 for operation in row.linear_formula.split("|") if operation.strip()),
    )
