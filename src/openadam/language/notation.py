"""Printing for people: an expression as plain text or as LaTeX, by one printer with two tables.

    text     m_hat/(sqrt(v_hat) + eps)          as in Python; m[t-1] is the state before the step
    latex    \\frac{\\hat{m}_t}{\\sqrt{\\hat{v}_t} + \\epsilon}          the symbols of the papers

Brackets stand wherever the order of operations needs them, and only there: floating-point sums and products are
grouped as the rule groups them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .graph import Node, postorder

__all__ = ["LATEX", "TEXT", "Notation", "Piece", "latex", "names_in", "rounded", "text"]

ANYTHING, COMPARISON, SUM, PRODUCT, SIGNED, POWER, ATOM = range(7)
"""How tightly a printed piece holds together; an operand that holds less than its place asks for is bracketed."""

LONGEST = 10_000  # a shared sub-expression is written wherever it is used, so the text can grow exponentially


class Piece(NamedTuple):
    """Printed text, and how tightly it holds together."""

    text: str
    binding: int = ATOM


Operation = tuple[Callable[..., str], int, tuple[int, ...]]  # how to print, how tightly it holds, what each operand must hold


@dataclass(frozen=True)
class Notation:
    """One way of writing expressions: a table of operations, and how names, numbers and vectors look."""

    operations: Mapping[str, Operation]
    bracket: str
    ellipsis: str
    usual: Callable[[str, str], str]
    """A name at a time: ``t``, ``t-1``, a number, or nothing for what has no time."""
    careful: Callable[[str, str], str]
    """The same, for a name that would be taken for another."""
    mistaken: Callable[[str, frozenset[str]], bool]
    """Whether a name would be taken for another, if it stands beside these."""
    number: Callable[[float], Piece]
    vector: Callable[[Sequence[str]], str]
    gradient: str
    """What the gradient is, at a place."""
    beside: frozenset[str] = frozenset()

    def telling_apart(self, names: Iterable[str]) -> Notation:
        """The same notation for formulas in which all these names stand."""
        return replace(self, beside=frozenset(names))

    def name(self, name: str, time: str) -> str:
        """A name at a time: ``t``, ``t-1``, a number, or nothing for what has no time."""
        if name == "gradient":
            return self.gradient.format(self.name("p", "t-1"))
        return (self.careful if self.mistaken(name, self.beside) else self.usual)(name, time)

    def symbol(self, symbol: Node) -> Piece:
        """A leaf by its name, at its time: states and the parameter are those before the step."""
        space, name = symbol.value
        time = "" if space == "scalar" else "t-1" if space == "state" or symbol.value == ("tensor", "p") else "t"
        return Piece(self.name(name, time))

    def value(self, value: float | Sequence[float], digits: int = 10) -> Piece:
        """A number, or the coordinates of a vector, rounded to so many significant digits."""
        if isinstance(value, (int, float)):
            return self.number(rounded(value, digits))
        return Piece(self.vector([self.number(rounded(x, digits)).text for x in value]))

    def write(self, root: Node, leaf: Callable[[Node], Piece] | None = None) -> str:
        """The expression; ``leaf`` tells how its symbols look."""
        leaf = leaf or self.symbol
        pieces: dict[int, Piece] = {}
        for node in postorder(root):
            if node.operation == "symbol":
                piece = leaf(node)
            elif node.operation == "constant":
                piece = self.number(node.value) if isinstance(node.value, float) else Piece(str(node.value))
            else:
                template, binding, needs = self.operations[node.operation]
                operands = [pieces[id(argument)] for argument in node.arguments]
                piece = Piece(template(*(self._operand(*operand) for operand in zip(operands, needs, range(len(needs)), strict=True))), binding)
            pieces[id(node)] = piece if len(piece.text) <= LONGEST else Piece(self.ellipsis)
        return pieces[id(root)].text

    def _operand(self, piece: Piece, need: int, place: int) -> str:
        sign_after_operator = place > 0 and need > ANYTHING and piece.text.startswith("-")
        return self.bracket.format(piece.text) if piece.binding < need or sign_after_operator else piece.text


def rounded(value: float, digits: int = 10) -> float:
    """The number with so many significant digits: what is shown of a result."""
    return float(f"{value:.{digits}g}")


def _shortest(value: float) -> tuple[str, str]:
    """The fewest digits that mean this number, and its power of ten if it is written with one; no sign on zero."""
    mantissa, _, exponent = repr(value + 0.0).partition("e")
    return mantissa.removesuffix(".0"), exponent and str(int(exponent))


def _text_number(value: float) -> Piece:
    mantissa, exponent = _shortest(value)
    return Piece(f"{mantissa}e{exponent}" if exponent else mantissa, SIGNED if value < 0 else ATOM)


def _text_name(name: str, time: str) -> str:
    return f"{name}[t-1]" if time == "t-1" else f"{name}{time}" if time.isdecimal() else name


def _bracketed_name(name: str, time: str) -> str:
    return f"{name}[{time}]" if time == "t-1" or time.isdecimal() else name


def _ends_in_a_number(name: str, beside: frozenset[str]) -> bool:
    """m1 at step 2 is not m12, and m at step 1 not m1."""
    return name[-1].isdigit() or any(other.removeprefix(name).isdecimal() for other in beside if other.startswith(name))


def _latex_number(value: float) -> Piece:
    if not math.isfinite(value):
        return Piece(r"\mathrm{NaN}") if math.isnan(value) else Piece(r"\infty") if value > 0 else Piece(r"-\infty", SIGNED)
    mantissa, exponent = _shortest(value)
    if not exponent:
        return Piece(mantissa, SIGNED if value < 0 else ATOM)
    if abs(float(mantissa)) == 1:
        return Piece(f"-10^{{{exponent}}}", SIGNED) if value < 0 else Piece(f"10^{{{exponent}}}", POWER)
    return Piece(rf"{mantissa} \cdot 10^{{{exponent}}}", PRODUCT)


GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega"
SYMBOLS = {
    "lr": r"\alpha", "eps": r"\epsilon", "weight_decay": r"\lambda", "momentum": r"\mu", "dampening": r"\tau",
    "lr_decay": r"\eta", "momentum_decay": r"\psi", "p": r"\theta", "direction": "d", "sum": "G",
}  # fmt: skip
ACCENTS = {"hat": r"\hat", "mean": r"\bar"}


def _latex_name(name: str, time: str) -> str:
    """The papers' symbol where there is one; v_hat is v with a hat, beta1 has an index; any other name is set upright."""
    base, indices = SYMBOLS.get(name, ""), []
    stem, *suffixes = name.split("_")
    letters = stem.rstrip("0123456789")
    if not base and (letters in GREEK.split() or len(letters) == 1):
        base, indices = (letters if len(letters) == 1 else f"\\{letters}"), [stem[len(letters) :]]
        for suffix in suffixes:
            if suffix in ACCENTS:
                base = f"{ACCENTS[suffix]}{{{base}}}"
            else:
                indices.append(r"\max" if suffix == "max" else rf"\mathrm{{{suffix}}}")
    return _with_index(base or _upright(name), ",".join(filter(None, [*indices, time])))


def _upright_name(name: str, time: str) -> str:
    return _with_index(_upright(name), time)


def _upright(name: str) -> str:
    return rf"\mathrm{{{name}}}".replace("_", r"\_")


def _with_index(base: str, index: str) -> str:
    return base if not index else f"{base}_{index}" if len(index) == 1 else f"{base}_{{{index}}}"


def _looks_like_another(name: str, beside: frozenset[str]) -> bool:
    """Lr and alpha have one symbol; who is called as it is written keeps it."""

    def look(name: str) -> str:
        return _latex_name(name, "").translate({ord(brace): None for brace in "{}"}).replace(r"\mathrm", "")

    twins = [other for other in beside if other != name and look(other) == look(name)]
    return bool(twins) and (name in SYMBOLS or "_" in name or not any(twin in SYMBOLS or "_" in twin for twin in twins))


def _latex_product(a: str, b: str) -> str:
    reads_as_one_number = b[0].isdigit() or (a[-1].isdigit() and b.startswith(r"\frac"))
    return rf"{a} \cdot {b}" if reads_as_one_number else f"{a} {b}"


TEXT = Notation(
    {
        "add": ("{} + {}".format, SUM, (SUM, PRODUCT)),
        "subtract": ("{} - {}".format, SUM, (SUM, PRODUCT)),
        "multiply": ("{}*{}".format, PRODUCT, (PRODUCT, POWER)),
        "divide": ("{}/{}".format, PRODUCT, (PRODUCT, POWER)),
        "power": ("{}**{}".format, POWER, (ATOM, ATOM)),
        "negative": ("-{}".format, SIGNED, (POWER,)),
        "less": ("{} < {}".format, COMPARISON, (ANYTHING, ANYTHING)),
        "less_equal": ("{} <= {}".format, COMPARISON, (ANYTHING, ANYTHING)),
        "equal": ("{} == {}".format, COMPARISON, (ANYTHING, ANYTHING)),
        "absolute": ("abs({})".format, ATOM, (ANYTHING,)),
        **{name: (f"{name}({{}})".format, ATOM, (ANYTHING,)) for name in ("sqrt", "exp", "expm1", "log", "sign")},
        **{name: (f"{name}({{}}, {{}})".format, ATOM, (ANYTHING,) * 2) for name in ("maximum", "minimum")},
        "where": ("where({}, {}, {})".format, ATOM, (ANYTHING,) * 3),
    },
    bracket="({})",
    ellipsis="…",
    usual=_text_name,
    careful=_bracketed_name,
    mistaken=_ends_in_a_number,
    number=_text_number,
    vector=lambda items: f"({', '.join(items)})",
    gradient="gradient",
)

LATEX = Notation(
    {
        "add": ("{} + {}".format, SUM, (SUM, PRODUCT)),
        "subtract": ("{} - {}".format, SUM, (SUM, PRODUCT)),
        "multiply": (_latex_product, PRODUCT, (PRODUCT, POWER)),
        "divide": (r"\frac{{{}}}{{{}}}".format, POWER, (ANYTHING, ANYTHING)),
        "power": ("{}^{{{}}}".format, POWER, (ATOM, ANYTHING)),
        "negative": ("-{}".format, SIGNED, (POWER,)),
        "less": ("{} < {}".format, COMPARISON, (ANYTHING, ANYTHING)),
        "less_equal": (r"{} \le {}".format, COMPARISON, (ANYTHING, ANYTHING)),
        "equal": ("{} = {}".format, COMPARISON, (ANYTHING, ANYTHING)),
        "absolute": (r"\left| {} \right|".format, ATOM, (ANYTHING,)),
        "sqrt": (r"\sqrt{{{}}}".format, ATOM, (ANYTHING,)),
        "exp": ("e^{{{}}}".format, POWER, (ANYTHING,)),
        "log": (r"\log\left( {} \right)".format, ATOM, (ANYTHING,)),
        **{name: (rf"\operatorname{{{{{name}}}}}\left( {{}} \right)".format, ATOM, (ANYTHING,)) for name in ("expm1", "sign")},
        "maximum": (r"\max\left( {}, {} \right)".format, ATOM, (ANYTHING,) * 2),
        "minimum": (r"\min\left( {}, {} \right)".format, ATOM, (ANYTHING,) * 2),
        "where": (
            lambda condition, a, b: rf"\begin{{cases}} {a} & \text{{if }} {condition} \\ {b} & \text{{otherwise}} \end{{cases}}",
            COMPARISON,  # it has no bracket on its right
            (ANYTHING,) * 3,
        ),
    },
    bracket=r"\left( {} \right)",
    ellipsis=r"\dots",
    usual=_latex_name,
    careful=_upright_name,
    mistaken=_looks_like_another,
    number=_latex_number,
    vector=lambda items: r"\begin{pmatrix} " + r" \\ ".join(items) + r" \end{pmatrix}",
    gradient=r"\nabla f({})",
)


def text(expression: Node) -> str:
    """The expression as plain text, in Python's notation.

    >>> from openadam import rules
    >>> print(text(rules.adam.trace().named["m"]))
    beta1*m[t-1] + (1 - beta1)*g
    """
    return TEXT.telling_apart(names_in([expression])).write(expression)


def latex(expression: Node) -> str:
    r"""The expression as LaTeX, for math mode.

    >>> from openadam import rules
    >>> print(latex(rules.adam.trace().named["m"]))
    \beta_1 m_{t-1} + \left( 1 - \beta_1 \right) g_t
    """
    return LATEX.telling_apart(names_in([expression])).write(expression)


def names_in(expressions: Iterable[Node]) -> frozenset[str]:
    """The names of all symbols in expressions."""
    return frozenset(node.value[1] for node in postorder(*expressions) if node.operation == "symbol")
