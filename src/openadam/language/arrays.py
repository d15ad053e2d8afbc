"""Evaluating: a graph as its author wrote it on numbers of any kind, scalars in float64, and a program on arrays, whole or in blocks."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .expression import Expression
from .graph import postorder
from .program import Program

__all__ = ["compile_scalars", "evaluate", "run", "run_in_blocks"]


def _total(function: Callable[..., float], *, overflow: float = math.inf) -> Callable[..., float]:
    """A function of floats that answers like IEEE arithmetic where Python raises."""

    def wrapped(*arguments: float) -> float:
        try:
            return function(*arguments)
        except OverflowError:
            return overflow
        except (ValueError, ZeroDivisionError):
            return math.nan

    return wrapped


def _divide(a: float, b: float) -> float:
    if b != 0:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _power(a: float, b: float) -> float:
    odd = b == math.floor(b) and b % 2 == 1
    try:
        return math.pow(a, b)
    except OverflowError:
        return -math.inf if a < 0 and odd else math.inf
    except ValueError:  # 0 to a power below 0, or a root of less than 0
        return math.nan if a != 0 else math.copysign(math.inf, a) if odd else math.inf


def _choose(a_wins: bool, a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else a if a_wins else b


NUMBERS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": _divide,
    "power": _power,
    "negative": operator.neg,
    "absolute": abs,
    "sqrt": _total(math.sqrt),
    "exp": _total(math.exp),
    "expm1": _total(math.expm1),
    "log": lambda x: -math.inf if x == 0 else _total(math.log)(x),
    "sign": lambda x: x if math.isnan(x) else float((x > 0) - (x < 0)),
    "maximum": lambda a, b: _choose(a > b, a, b),
    "minimum": lambda a, b: _choose(a < b, a, b),
    "less": lambda a, b: float(a < b),
    "less_equal": lambda a, b: float(a <= b),
    "equal": lambda a, b: float(a == b),
    "where": lambda condition, a, b: a if condition else b,
}
"""The operations on Python floats, with IEEE answers (NaN, infinity) where Python would raise."""


def evaluate(roots: Sequence[Expression], values: Mapping[tuple[str, str], Any], functions: Mapping[str, Callable[..., Any]] = NUMBERS) -> list[Any]:
    """The values of expressions; ``values`` maps a symbol's (space, name), ``functions`` each operation.

    With mpmath's functions this is the oracle of the tests.
    """
    results: dict[int, Any] = {}
    for expression in postorder(*roots):
        if expression.operation == "constant":
            results[id(expression)] = expression.value
        elif expression.operation == "symbol":
            results[id(expression)] = values[expression.value]
        else:
            results[id(expression)] = functions[expression.operation](*(results[id(argument)] for argument in expression.arguments))
    return [results[id(root)] for root in roots]


def compile_scalars(roots: Sequence[Expression]) -> Callable[[Mapping[str, float]], list[float]]:
    """A fast function that does what `evaluate` does for scalars, from their symbols' names, in float64.

    It is called at every step; walking the graph each time would cost more than a small step itself.
    """
    infix = {"add": "+", "subtract": "-", "multiply": "*"}
    lines: list[str] = []
    places: dict[int, str] = {}
    for expression in postorder(*roots):
        if expression.operation == "constant":
            places[id(expression)] = repr(expression.value)
            continue
        operands = [places[id(argument)] for argument in expression.arguments]
        if expression.operation == "symbol":
            code = f"values[{expression.value[1]!r}]"
        elif expression.operation in infix:
            code = infix[expression.operation].join(operands)
        else:
            code = f"{expression.operation}({', '.join(operands)})"
        places[id(expression)] = f"x{len(lines)}"
        lines.append(f"    x{len(lines)} = {code}\n")
    source = f"def scalars(values):\n{''.join(lines)}    return [{', '.join(places[id(root)] for root in roots)}]\n"
    namespace: dict[str, Any] = dict(NUMBERS)
    exec(source, namespace)
    return namespace["scalars"]  # type: ignore[no-any-return]


def run(program: Program, arrays: Mapping[str, Any], scalars: Sequence[Any], np: Any, number: Callable[[float], Any] | None = None) -> dict[str, Any]:
    """The outputs of a program on arrays of one floating dtype, operation by operation.

    Args:
        program: What `lower` made.
        arrays: Every input of the program by name, of one shape and dtype.
        scalars: the program's scalars, computed in float64; each is rounded once to the arrays' dtype.
        np: The array module: ``numpy`` or one that speaks like it, ``torch``.
        number: Makes a scalar one of the arrays' dtype; default: NumPy's type of that name.
    """
    dtype = arrays[program.inputs[0]].dtype
    number = number or dtype.type
    tiny = np.finfo(dtype).smallest_normal
    rounded = [number(scalar) for scalar in scalars]
    functions: dict[str, Callable[..., Any]] = {
        "add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": np.divide,
        "negative": operator.neg, "absolute": np.abs, "sqrt": np.sqrt,
        "less": operator.lt, "less_equal": operator.le, "equal": operator.eq,
    }  # fmt: skip
    truth = (np.zeros(()) == 0).dtype  # of this module's comparisons
    values: list[Any] = []

    def look_up(argument: tuple[str, Any]) -> Any:
        kind, which = argument
        if kind == "value":
            return values[which]
        if kind == "input":
            return arrays[which]
        if kind == "scalar":
            return rounded[which]
        return tiny if which == "smallest_normal" else number(which)

    for instruction in program.instructions:
        operands = [look_up(argument) for argument in instruction.arguments]
        if instruction.operation == "where":
            condition, a, b = operands
            values.append(np.where(condition if condition.dtype == truth else condition != 0, a, b))
        else:
            values.append(functions[instruction.operation](*operands))
    return {target: look_up(argument) for target, argument in program.outputs.items()}


BLOCK = 16384
"""Elements that are worked on together: their intermediate values stay in the cache."""

COMPARISONS = frozenset({"less", "less_equal", "equal"})


class _Plan(NamedTuple):
    """A program as a function over one block, and what it works in."""

    block: Callable[..., None]  # of inputs, scalars, constants, floats, bools and outputs
    constants: tuple[Any, ...]  # numbers, or the name of one that depends on the dtype
    floats: int  # blocks for intermediate values
    bools: int


def run_in_blocks(
    program: Program, arrays: Mapping[str, Any], scalars: Sequence[float], np: Any, prepare: tuple[Program, Sequence[float]] | None = None
) -> dict[str, Any]:
    """What `run` returns of flat arrays, computed block by block in memory that is used again.

    Args:
        program: What `lower` made.
        arrays: Every input of the program by name, flat, of one length and dtype.
        scalars: The program's scalars.
        np: NumPy.
        prepare: A program, and its scalars, whose one output stands for ``g``.
    """
    like = arrays["p" if "p" in arrays else program.inputs[0]]
    dtype, length = like.dtype, min(len(like), BLOCK)
    outputs = {name: np.empty(len(like), dtype) for name in program.outputs}
    prepared = np.empty(length, dtype)

    def stage(program: Program, scalars: Sequence[float]) -> tuple[Program, _Plan, list[Any], list[Any]]:
        plan = _plan(program, np)
        constants = [np.finfo(dtype).smallest_normal if number == "smallest_normal" else dtype.type(number) for number in plan.constants]
        return program, plan, [dtype.type(number) for number in scalars], constants

    stages = [stage(*each) for each in (prepare, (program, scalars)) if each is not None]
    floats = [np.empty(length, dtype) for _ in range(max(plan.floats for _, plan, *_ in stages))]
    bools = [np.empty(length, bool) for _ in range(max(plan.bools for _, plan, *_ in stages))]
    for start in range(0, len(like), BLOCK):
        stop = min(start + BLOCK, len(like))
        if stop - start < length:
            floats, bools = [each[: stop - start] for each in floats], [each[: stop - start] for each in bools]
        given = {name: array[start:stop] for name, array in arrays.items()}
        for each, plan, numbers, constants in stages:
            made = [outputs[name][start:stop] for name in each.outputs] if each is program else [prepared[: stop - start]]
            plan.block([given[name] for name in each.inputs], numbers, constants, floats, bools, made)
            if each is not program:
                given["g"] = made[0]
    return outputs


@functools.lru_cache(maxsize=256)
def _plan(program: Program, np: Any) -> _Plan:
    """Which block each intermediate value is written to; one is free again once its value has been used for the last time."""
    used: dict[Any, int] = {
        argument[1]: place for place, each in enumerate(program.instructions) for argument in each.arguments if argument[0] == "value"
    }
    constants: dict[str, tuple[int, Any]] = {}
    names: dict[Any, str] = {}  # of values
    free: dict[str, list[str]] = {"f": [], "b": []}
    count = {"f": 0, "b": 0}
    written = {argument[1]: f"o{place}" for place, argument in reversed([*enumerate(program.outputs.values())]) if argument[0] == "value"}

    def name(argument: tuple[str, Any]) -> str:
        kind, which = argument
        if kind == "value":
            return names[which]
        if kind == "constant":
            return f"c{constants.setdefault(repr(which), (len(constants), which))[0]}"  # 0 and -0 are two
        return f"i{program.inputs.index(which)}" if kind == "input" else f"s{which}"

    lines = []
    for place, (operation, arguments) in enumerate((each.operation, each.arguments) for each in program.instructions):
        operands = [name(argument) for argument in arguments]
        kind = "b" if operation in COMPARISONS else "f"
        last = [names[which] for what, which in arguments if what == "value" and used[which] == place and which not in written]
        dying = list(dict.fromkeys(last))
        # A choice is written over what it falls back on; its other operands must live until it is made.
        early = [each for each in dying if operation != "where" or (each == operands[2] and each not in operands[:2])]
        for each in early:
            free[each[0]].append(each)
        if place in written:
            names[place] = written[place]
        elif free[kind]:
            names[place] = free[kind].pop()
        else:
            names[place] = f"{kind}{count[kind]}"
            count[kind] += 1
        for each in dying:
            if each not in early:
                free[each[0]].append(each)
        lines.append(f"    {operation if operation != 'where' else '_choose_into'}({', '.join([*operands, names[place]])})\n")
    for place, argument in enumerate(program.outputs.values()):
        if name(argument) != f"o{place}":
            lines.append(f"    o{place}[...] = {name(argument)}\n")
    groups = {"i": len(program.inputs), "s": len(program.scalars), "c": len(constants), "f": count["f"], "b": count["b"], "o": len(program.outputs)}
    taken = [f"    [{', '.join(f'{letter}{k}' for k in range(size))}{', ' if size else ''}*_] = {letter}\n" for letter, size in groups.items()]
    source = f"def block({', '.join(groups)}):\n{''.join(taken)}{''.join(lines)}"
    ufuncs = {each.operation: getattr(np, each.operation) for each in program.instructions if each.operation != "where"}
    namespace: dict[str, Any] = {**ufuncs, "_choose_into": functools.partial(_choose_into, np)}
    exec(source, namespace)
    return _Plan(namespace["block"], tuple(number for _, number in constants.values()), count["f"], count["b"])


def _choose_into(np: Any, condition: Any, a: Any, b: Any, out: Any) -> None:
    if not isinstance(condition, np.ndarray):
        out[...] = a if condition else b
        return
    if out is not b:
        np.copyto(out, b)
    np.copyto(out, a, where=condition)
