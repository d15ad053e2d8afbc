"""Printing as C++: a program as an elementwise loop that the compiler vectorises, measured on the way or as a reduction over fixed lanes, and
scalars as a function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .graph import postorder
from .program import Program

__all__ = ["measured", "reduction", "scalars", "update"]

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
    smallest_normal std RESTRICT INDEPENDENT kLanes given p_after joined all lane begin step sum largest
    """.split()  # noqa: SIM905 - easier to read than sixty strings
)
"""What a tensor of a rule cannot be called in a printed kernel."""
CONDITIONS = ("less", "less_equal", "equal")
SCALARS = {
    "add": "{} + {}", "subtract": "{} - {}", "multiply": "{} * {}", "divide": "{} / {}", "power": "pow({}, {})", "negative": "-{}",
    "absolute": "fabs({})", "sqrt": "sqrt({})", "exp": "exp({})", "expm1": "expm1({})", "log": "log({})", "sign": "sign({})",
    "maximum": "maximum({}, {})", "minimum": "minimum({}, {})", "less": "double({} < {})", "less_equal": "double({} <= {})",
    "equal": "double({} == {})", "where": "{} != 0 ? {} : {}",
}  # fmt: skip


def _safe(name: str) -> str:
    """A tensor's name as C++ can have it, apart from the words of the language and from what is printed here."""
    return f"{name}__" if name in WORDS or re.fullmatch(r"[cxy]\d+|lanes\d+|.*_", name) or not name.isascii() else name


def _argument(pair: tuple[str, Any], condition: bool = False, value: str = "x") -> str:
    """Where the values of an update are called x, those of measures y; what these read has its own names in every kernel."""
    kind, which = pair
    if kind == "constant":
        return "smallest_normal<T>" if which == "smallest_normal" else f"T({which!r})"
    printed = {"value": f"{value}{which}", "input": _safe(str(which)) if value == "x" else which, "scalar": f"c{which}"}[kind]
    return f"{printed} != T(0)" if condition and kind == "scalar" else printed


def _statements(program: Program, value: str = "x") -> list[str]:
    """One line per operation, in the program's order."""
    lines = []
    for position, instruction in enumerate(program.instructions):
        kind = "bool" if instruction.operation in CONDITIONS else "T"
        chosen = instruction.operation == "where"
        operands = [_argument(pair, chosen and place == 0, value) for place, pair in enumerate(instruction.arguments)]
        lines.append(f"const {kind} {value}{position} = {TEMPLATES[instruction.operation].format(*operands)};")
    return lines


def _element(program: Program) -> list[str]:
    """What is done with element i."""
    lines = [f"const T {_safe(name)} = {_safe(name)}_[i];" for name in program.inputs]
    lines += _statements(program)
    return lines + [f"{_safe(name)}_[i] = {_argument(pair)};" for name, pair in program.outputs.items()]


def _unpacked(program: Program) -> list[str]:
    """The tensors and the scalars by name."""
    places = {name: position for position, name in enumerate(dict.fromkeys(["g", "p", *program.states, *program.outputs]))}
    lines = []
    for name in dict.fromkeys([*program.inputs, *program.outputs]):
        constness = "" if name in program.outputs else "const "
        lines.append(f"  {constness}T* RESTRICT {_safe(name)}_ = static_cast<{constness}T*>(tensors[{places[name]}]);")
    return lines + [f"  const T c{i} = static_cast<T>(scalars[{i}]);" for i in range(len(program.scalars))]


def update(program: Program) -> str:
    """A function template over the arithmetic's type: ``name(tensors, scalars, n)``.

    ``tensors`` holds the addresses of g, p, the states and any other output, in this order; what a program does not touch is not read.
    """
    lines = [
        f"// {program.name}",
        "template <class T>",
        f"void {_safe(program.name)}(void* const* tensors, [[maybe_unused]] const double* scalars, std::int64_t n) {{",
        *_unpacked(program),
        "  for (std::int64_t i = 0; i < n; ++i) {",
        *(f"    {line}" for line in _element(program)),
        "  }",
        "}",
    ]
    return "\n".join(lines)


def measured(program: Program, measures: Program, joins: Mapping[str, str]) -> str:
    """A function template ``name_measured(tensors, given, scalars, n, joined)``: an update that joins the outputs of another program on the way.

    Args:
        program: The update, as in `update`.
        measures: Reads ``given`` (the gradient as given, an address of its own), ``p`` (before the update) and ``p_after``.
        joins: How two values of an output become one, in C++: ``sum`` or ``largest``; in the order of ``joined``, which holds the lanes of each.
            Elements begin at lane 0, so all calls for one block but the last are for a multiple of their number.
    """
    p_after = _argument(program.outputs["p"])
    body = _element(program)
    if "p" not in program.inputs:
        body.insert(0, "const T p = p_[i];")
    body.insert(0, "const T given = given_[i];")
    body += [f"const T p_after = {p_after};", *_statements(measures, "y")]
    for k, (output, join) in enumerate(joins.items()):
        body.append(f"lanes{k}[lane] = {join}(lanes{k}[lane], {_argument(measures.outputs[output], value='y')});")
    lines = [
        f"// {program.name}, measured",
        "template <class T>",
        f"void {_safe(program.name)}_measured(void* const* tensors, const void* given_at, [[maybe_unused]] const double* scalars, std::int64_t n,"
        " void* joined) {",
        *_unpacked(program),
        "  const T* RESTRICT given_ = static_cast<const T*>(given_at);",
        "  T(*const all)[kLanes] = static_cast<T(*)[kLanes]>(joined);",
        *(f"  T lanes{k}[kLanes];" for k in range(len(joins))),
        "  for (int lane = 0; lane < kLanes; ++lane) {",
        *(f"    lanes{k}[lane] = all[{k}][lane];" for k in range(len(joins))),
        "  }",
        "  const auto step = [&](std::int64_t i, int lane) {",
        *(f"    {line}" for line in body),
        "  };",
        "  std::int64_t begin = 0;",
        "  for (; begin + kLanes <= n; begin += kLanes) {",
        "    INDEPENDENT",
        "    for (int lane = 0; lane < kLanes; ++lane) step(begin + lane, lane);",
        "  }",
        "  for (int lane = 0; begin + lane < n; ++lane) step(begin + lane, lane);",
        "  for (int lane = 0; lane < kLanes; ++lane) {",
        *(f"    all[{k}][lane] = lanes{k}[lane];" for k in range(len(joins))),
        "  }",
        "}",
    ]
    return "\n".join(lines)


def reduction(name: str, program: Program, join: str, arithmetic: str) -> str:
    """A function template ``name(g, n)`` that joins the only output of a program over n elements of ``g`` in fixed lanes.

    Args:
        name: What it is called.
        program: Reads ``g``.
        join: How two values become one, in C++: ``sum`` or ``largest``.
        arithmetic: The type that it is done in; ``S`` is that of the elements.
    """
    (output,) = program.outputs.values()
    lines = [
        "template <class S>",
        f"double {name}(const void* g_at, std::int64_t n) {{",
        f"  using T = {arithmetic};",
        "  const S* RESTRICT g_ = static_cast<const S*>(g_at);",
        "  T lanes[kLanes] = {};",
        "  const auto look = [&](std::int64_t i, int lane) {",
        "    const T g = static_cast<T>(g_[i]);",
        *(f"    {line}" for line in _statements(program)),
        f"    lanes[lane] = {join}(lanes[lane], {_argument(output)});",
        "  };",
        "  std::int64_t i = 0;",
        "  for (; i + kLanes <= n; i += kLanes)",
        "    for (int lane = 0; lane < kLanes; ++lane) look(i + lane, lane);",
        "  for (int lane = 0; lane < kLanes && i < n; ++i, ++lane) look(i, lane);",
        f"  return fold(lanes, [](T a, T b) {{ return {join}(a, b); }});",
    ]
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
