"""Expressions printed for people: what is printed means what was written, and looks as in the papers."""

from __future__ import annotations

import ast
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import openadam
from openadam.language.expression import ARITIES, CONDITIONS, Expression, exp, log, maximum, minimum, node, sign, sqrt, symbol, where
from openadam.language.notation import LATEX, TEXT, latex, text

G, P, M, V = symbol("tensor", "g"), symbol("tensor", "p"), symbol("state", "m"), symbol("state", "v")
A, B, T = symbol("scalar", "beta1"), symbol("scalar", "eps"), symbol("scalar", "t")

INFIX = {
    ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide", ast.Pow: "power",
    ast.Lt: "less", ast.LtE: "less_equal", ast.Eq: "equal",
}  # fmt: skip
SYMBOLS = {"g": G, "p[t-1]": P, "m[t-1]": M, "v[t-1]": V, "beta1": A, "eps": B, "t": T}


def read(tree: ast.expr) -> Expression:
    """The expression that a piece of Python means, node by node."""
    match tree:
        case ast.Constant(value):
            return Expression("constant", (), float(value))
        case ast.Name() | ast.Subscript():
            return SYMBOLS[ast.unparse(tree).replace(" ", "")]
        case ast.BinOp(left, operator, right) | ast.Compare(left, [operator], [right]):
            return Expression(INFIX[type(operator)], (read(left), read(right)))
        case ast.UnaryOp(ast.USub(), operand):
            return Expression("negative", (read(operand),))
        case ast.Call(ast.Name(name), arguments):
            return Expression("absolute" if name == "abs" else name, tuple(map(read, arguments)))
    raise AssertionError(ast.dump(tree))


def structure(expression: Expression) -> object:
    return (expression.operation, expression.value, *map(structure, expression.arguments))


def expressions() -> st.SearchStrategy[Expression]:
    """Any expression of the language over a few symbols and constants."""
    constants = st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e-8, 3e20]).map(lambda x: Expression("constant", (), x))
    leaves = st.sampled_from(sorted(SYMBOLS)).map(SYMBOLS.__getitem__) | constants
    values = sorted(set(ARITIES) - CONDITIONS - {"where"})

    def grow(inner: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
        plain = st.sampled_from(values).flatmap(lambda op: st.tuples(*[inner] * ARITIES[op]).map(lambda args: Expression(op, args)))
        compared = st.builds(lambda op, a, b: Expression(op, (a, b)), st.sampled_from(sorted(CONDITIONS)), inner, inner)
        return plain | st.builds(lambda *args: Expression("where", args), compared, inner, inner)

    return st.recursive(leaves, grow, max_leaves=12)


@settings(max_examples=300)
@given(expressions())
def test_the_text_read_as_python_is_the_same_expression(expression: Expression) -> None:
    assert structure(read(ast.parse(text(expression), mode="eval").body)) == structure(expression)


def well_formed(printed: str) -> bool:
    """Whether braces, brackets and environments close in order, and nothing has two superscripts."""
    open_ones: list[str] = []
    for token in re.findall(r"\\left|\\right|\\begin\{\w+\}|\\end\{\w+\}|[{}]", printed):
        if token.startswith((r"\left", r"\begin", "{")):
            open_ones.append(token.replace("begin", "end"))
        elif not open_ones or open_ones.pop() != {r"\right": r"\left", "}": "{"}.get(token, token):
            return False
    return not open_ones and not re.search(r"\^\{[^{}]*\}\s*\^", printed)


@given(expressions())
def test_the_latex_is_well_formed(expression: Expression) -> None:
    assert well_formed(latex(expression))


def test_the_check_of_latex_sees_what_is_wrong() -> None:
    for wrong in (r"\frac{a}{b", r"\left( \sqrt{a \right)}", r"a^{2}^{t}", r"\begin{cases} a \end{pmatrix}", r"a \right)"):
        assert not well_formed(wrong)


CASES = [
    (lambda: A * M + (1 - A) * G, "beta1*m[t-1] + (1 - beta1)*g", r"\beta_1 m_{t-1} + \left( 1 - \beta_1 \right) g_t"),
    (lambda: G / (sqrt(V) + B), "g/(sqrt(v[t-1]) + eps)", r"\frac{g_t}{\sqrt{v_{t-1}} + \epsilon}"),
    (lambda: G**2, "g**2", "g_t^{2}"),
    (lambda: (A * G) ** 2, "(beta1*g)**2", r"\left( \beta_1 g_t \right)^{2}"),
    (lambda: (G / B) ** 2, "(g/eps)**2", r"\left( \frac{g_t}{\epsilon} \right)^{2}"),
    (lambda: A ** (T + 1), "beta1**(t + 1)", r"\beta_1^{t + 1}"),
    (lambda: (G**2) ** 3, "(g**2)**3", r"\left( g_t^{2} \right)^{3}"),
    (lambda: A ** (T**2), "beta1**(t**2)", r"\beta_1^{t^{2}}"),
    (lambda: -(G**2), "-g**2", "-g_t^{2}"),
    (lambda: (-G) ** 2, "(-g)**2", r"\left( -g_t \right)^{2}"),
    (lambda: G - (A - B), "g - (beta1 - eps)", r"g_t - \left( \beta_1 - \epsilon \right)"),
    (lambda: (G - A) - B, "g - beta1 - eps", r"g_t - \beta_1 - \epsilon"),
    (lambda: G + (A + B), "g + (beta1 + eps)", r"g_t + \left( \beta_1 + \epsilon \right)"),
    (lambda: G * (A * B), "g*(beta1*eps)", r"g_t \left( \beta_1 \epsilon \right)"),
    (lambda: G / (A * B), "g/(beta1*eps)", r"\frac{g_t}{\beta_1 \epsilon}"),
    (lambda: G + -A * B, "g + (-beta1*eps)", r"g_t + \left( -\beta_1 \epsilon \right)"),
    (lambda: G * -5.0, "g*(-5)", r"g_t \left( -5 \right)"),
    (lambda: -5.0 * G, "-5*g", "-5 g_t"),
    (lambda: G * 2, "g*2", r"g_t \cdot 2"),
    (lambda: 2 * (G / A), "2*(g/beta1)", r"2 \cdot \frac{g_t}{\beta_1}"),
    (lambda: G * 1e-8, "g*1e-8", r"g_t \cdot 10^{-8}"),
    (lambda: G * 2.5e-8, "g*2.5e-8", r"g_t \left( 2.5 \cdot 10^{-8} \right)"),
    (lambda: abs(G) + P, "abs(g) + p[t-1]", r"\left| g_t \right| + \theta_{t-1}"),
    (lambda: maximum(-G, minimum(A, B)), "maximum(-g, minimum(beta1, eps))", r"\max\left( -g_t, \min\left( \beta_1, \epsilon \right) \right)"),
    (lambda: sign(G) * log(A), "sign(g)*log(beta1)", r"\operatorname{sign}\left( g_t \right) \log\left( \beta_1 \right)"),
    (lambda: exp(A) ** 2, "exp(beta1)**2", r"\left( e^{\beta_1} \right)^{2}"),
    (lambda: node("expm1", A), "expm1(beta1)", r"\operatorname{expm1}\left( \beta_1 \right)"),
    (
        lambda: where(T == 1, 1, 1 - A) * G,
        "where(t == 1, 1, 1 - beta1)*g",
        r"\left( \begin{cases} 1 & \text{if } t = 1 \\ 1 - \beta_1 & \text{otherwise} \end{cases} \right) g_t",
    ),
    (lambda: where(A <= B, G, M), "where(beta1 <= eps, g, m[t-1])", None),
    (lambda: where(A < -B, G, M), "where(beta1 < -eps, g, m[t-1])", None),
]


@pytest.mark.parametrize(("build", "as_text", "as_latex"), CASES, ids=[case[1] for case in CASES])
def test_brackets_stand_where_they_must_and_nowhere_else(build, as_text: str, as_latex: str | None) -> None:
    expression = build()
    assert text(expression) == as_text == repr(expression)
    if as_latex is not None:
        assert latex(expression) == as_latex


@pytest.mark.parametrize(
    ("value", "as_text", "as_latex"),
    [
        (0.19999999999999996, "0.2", "0.2"),
        (0.0040000000000000036, "0.004", "0.004"),
        (1 / 3, "0.3333333333", "0.3333333333"),
        (3.0, "3", "3"),
        (-0.0, "0", "0"),
        (-2.5, "-2.5", "-2.5"),
        (1e-8, "1e-8", "10^{-8}"),
        (-1e-8, "-1e-8", "-10^{-8}"),
        (1.5e-10, "1.5e-10", r"1.5 \cdot 10^{-10}"),
        (123456789012345.0, "123456789000000", "123456789000000"),
        (1e22, "1e22", "10^{22}"),
        (math.inf, "inf", r"\infty"),
        (-math.inf, "-inf", r"-\infty"),
        (math.nan, "nan", r"\mathrm{NaN}"),
        ((0.2, -0.4), "(0.2, -0.4)", r"\begin{pmatrix} 0.2 \\ -0.4 \end{pmatrix}"),
    ],
)
def test_numbers_are_as_short_as_ten_digits_allow(value, as_text: str, as_latex: str) -> None:
    assert TEXT.value(value).text == as_text
    assert LATEX.value(value).text == as_latex


def test_constants_of_a_rule_are_not_rounded() -> None:
    assert text(G * 0.1234567890123456) == "g*0.1234567890123456"


@pytest.mark.parametrize(
    ("name", "time", "as_text", "as_latex"),
    [
        ("m", "t", "m", "m_t"),
        ("m", "t-1", "m[t-1]", "m_{t-1}"),
        ("v_hat", "2", "v_hat2", r"\hat{v}_2"),
        ("v_hat", "12", "v_hat12", r"\hat{v}_{12}"),
        ("v_max", "t-1", "v_max[t-1]", r"v_{\max,t-1}"),
        ("g_mean", "t", "g_mean", r"\bar{g}_t"),
        ("mu_product", "t", "mu_product", r"\mu_{\mathrm{product},t}"),
        ("beta2", "", "beta2", r"\beta_2"),
        ("lr", "", "lr", r"\alpha"),
        ("weight_decay", "", "weight_decay", r"\lambda"),
        ("p", "t", "p", r"\theta_t"),
        ("gradient", "t", "gradient", r"\nabla f(\theta_{t-1})"),
        ("my_state2", "t", "my_state2", r"\mathrm{my\_state2}_t"),
    ],
)
def test_names_become_the_symbols_of_the_papers(name: str, time: str, as_text: str, as_latex: str) -> None:
    assert TEXT.name(name, time) == as_text
    assert LATEX.name(name, time) == as_latex


def test_a_graph_that_shares_its_parts_is_not_written_out_without_end() -> None:
    x = G
    for _ in range(200):
        x = x * x
    assert "…" in repr(x)
    assert len(repr(x)) < 50_000


def test_complaints_about_a_rule_show_the_expression() -> None:
    with pytest.raises(openadam.RuleError, match=r"not to 1 - k$"):

        @openadam.rule
        def powered(g, s, h):
            return openadam.Step(g ** (1 - h.k))
