"""Printing as C++: a program as an elementwise loop that the compiler vectorises or as a reduction over fixed lanes, scalars as a function."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .graph import postorder
from .program import Program

__all__ = ["reductions", "scalars", "update"]

TEMPLATES = {
    "add": "{} + {}", "subtract": "{} - {}", "multiply": "{} * {}", "divide": "{} / {}", "negative": "-{}",
    "absolute": "absolute({})", "sqrt": "root({})", "less": "{} < {}", "less_equal": "{} <= {}", "equal": "{} == {}",
    "where": "{} ? {} : {}",
}  # fmt: skip
WORDS = frozenset(
    """
    T i n tensors scalars alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept const const_cast
    consteval constexpr constinit continue co_await co_return co_yield decltype default delete do double dynamic_cast else enum explicit export
    extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected
    public register reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq root absolute
    smallest_normal std RESTRICT
    """.split()  # noqa: SIM905 - easier to read than sixty strings
)
"""What a tensor cannot be called in a printed kernel."""
CONDITIONS = ("less", "less_equal", "equal")
SCALARS = {
    "add": "{} + {}", "subtract": "{} - {}", "multiply": "{} * {}", "divide": "{} / {}", "power": "pow({}, {})", "negative": "-{}",
    "absolute": "fabs({})", "sqrt": "sqrt({})", "exp": "exp({})", "expm1": "expm1({})", "log": "log({})", "sign": "sign({})",
    "maximum": "maximum({}, {})", "minimum": "minimum({}, {})", "less": "double({} < {})", "less_equal": "double({} <= {})",
    "equal": "double({} == {})", "where": "{} != 0 ? {} : {}",
}  # fmt: skip


def _safe(name: str) -> str:
    """A tensor's name as C++ can have it, apart from the words of the language and from what is printed here."""
    return f"{name}__" if name in WORDS or re.fullmatch(r"[cx]\d+|.*_", name) or not name.isascii() else name


def _argument(pair: tuple[str, Any], condition: bool = False) -> str:
    kind, which = pair
    if kind == "constant":
        return "smallest_normal<T>" if which == "smallest_normal" else f"T({which!r})"
    printed = {"value": f"x{which}", "input": _safe(str(which)), "scalar": f"c{which}"}[kind]
    return f"{printed} != T(0)" if condition and kind == "scalar" else printed


def _statements(program: Program) -> list[str]:
    """One line per operation, in the program's order."""
    lines = []
    for position, instruction in enumerate(program.instructions):
        kind = "bool" if instruction.operation in CONDITIONS else "T"
        chosen = instruction.operation == "where"
        operands = [_argument(pair, chosen and place == 0) for place, pair in enumerate(instruction.arguments)]
        lines.append(f"const {kind} x{position} = {TEMPLATES[instruction.operation].format(*operands)};")
    return lines


def update(program: Program) -> str:
    """A function template over the arithmetic's type: ``name(tensors, scalars, n)``.

    ``tensors`` holds the addresses of g, p, the states and any other output, in this order; what a program does not touch is not read.
    """
    places = {name: position for position, name in enumerate(dict.fromkeys(["g", "p", *program.states, *program.outputs]))}
    lines = [
        f"// {program.name}",
        "template <class T>",
        f"void {_safe(program.name)}(void* const* tensors, [[maybe_unused]] const double* scalars, std::int64_t n) {{",
    ]
    for name in dict.fromkeys([*program.inputs, *program.outputs]):
        constness = "" if name in program.outputs else "const "
        lines.append(f"  {constness}T* RESTRICT {_safe(name)}_ = static_cast<{constness}T*>(tensors[{places[name]}]);")
    lines += [f"  const T c{i} = static_cast<T>(scalars[{i}]);" for i in range(len(program.scalars))]
    lines.append("  for (std::int64_t i = 0; i < n; ++i) {")
    lines += [f"    const T {_safe(name)} = {_safe(name)}_[i];" for name in program.inputs]
    lines += [f"    {line}" for line in _statements(program)]
    lines += [f"    {_safe(name)}_[i] = {_argument(pair)};" for name, pair in program.outputs.items()]
    lines += ["  }", "}"]
    return "\n".join(lines)


def reductions(name: str, program: Program, joins: Mapping[str, str], arithmetic: str) -> str:
    """A function template ``name(tensors, n, joined)`` that joins each output of a program over n elements in fixed lanes.

    Args:
        name: What it is called.
        program: Reads ``g``, ``p`` (before the update) and ``p_after``.
        joins: How two values of an output become one, in C++: ``sum`` or ``largest``; in the order of ``joined``.
        arithmetic: The type that it is done in; ``S`` is that of the elements.
    """
    places = {"g": 0, "p": 1, "p_after": 2}
    lines = [
        f"// {name}: {', '.join(joins)}",
        "template <class S>",
        f"void {name}(const void* const* tensors, std::int64_t n, double* joined) {{",
        f"  using T = {arithmetic};",
    ]
    lines += [f"  const S* RESTRICT {each}_ = static_cast<const S*>(tensors[{places[each]}]);" for each in program.inputs]
    lines += [f"  T lanes{k}[kLanes] = {{}};" for k in range(len(joins))]
    lines.append("  const auto look = [&](std::int64_t i, int lane) {")
    lines += [f"    const T {each} = static_cast<T>({each}_[i]);" for each in program.inputs]
    lines += [f"    {line}" for line in _statements(program)]
    for k, (output, join) in enumerate(joins.items()):
        lines.append(f"    lanes{k}[lane] = {join}(lanes{k}[lane], {_argument(program.outputs[output])});")
    lines += [
        "  };",
        "  std::int64_t i = 0;",
        "  for (; i + kLanes <= n; i += kLanes)",
        "    for (int lane = 0; lane < kLanes; ++lane) look(i + lane, lane);",
        "  for (int lane = 0; lane < kLanes && i < n; ++i, ++lane) look(i, lane);",
    ]
    lines += [f"  joined[{k}] = fold(lanes{k}, [](T a, T b) {{ return {join}(a, b); }});" for k, join in enumerate(joins.values())]
    return "\n".join([*lines, "}"])


def scalars(program: Program) -> str:
    """A function ``name_scalars(h, s, t, gradient_scale, out)`` in float64: what a program needs once a step.

    ``h`` holds its hyperparameters, ``s`` its scalar states, in their order. The operations are those of
    `language.arrays.compile_scalars`, in the same order.
    """
    given = {("scalar", "t"): "t", ("scalar", "gradient_scale"): "gradient_scale"}
    given |= {("scalar", name): f"h[{k}]" for k, name in enumerate(program.hyperparameters)}
    given |= {("state", name): f"s[{k}]" for k, name in enumerate(program.memory)}
    places: dict[int, str] = {}
    lines: list[str] = []
    for expression in postorder(*program.once):
        if expression.operation == "constant":
            places[id(expression)] = repr(float(expression.value))
        elif expression.operation == "symbol":
            places[id(expression)] = given[expression.value]
        else:
            operands = [places[id(argument)] for argument in expression.arguments]
            lines.append(f"  const double x{len(lines)} = {SCALARS[expression.operation].format(*operands)};")
            places[id(expression)] = f"x{len(lines) - 1}"
    lines += [f"  out[{k}] = {places[id(root)]};" for k, root in enumerate(program.once)]
    arguments = ("const double* h", "const double* s", "double t", "double gradient_scale", "double* out")
    signature = ", ".join(f"[[maybe_unused]] {argument}" for argument in arguments)
    title = f"// {program.name}: h holds {', '.join(program.hyperparameters) or 'nothing'}"
    return "\n".join([title, f"void {program.name}_scalars({signature}) {{", *lines, "}"])
