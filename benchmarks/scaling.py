"""What training costs per process as models and groups grow: bytes held, bytes exchanged. Computed, not measured; prints docs/scaling.md's tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

import openadam.torch
from openadam.language.rule import Traced

MEMBERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {}),
    ("SGD", {"momentum": 0.9}),
    ("Adagrad", {}),
    ("RMSprop", {}),
    ("RMSprop", {"centered": True, "momentum": 0.9}),
    ("Adam", {}),
    ("AdamW", {}),
    ("AdamW", {"amsgrad": True}),
    ("Adamax", {}),
    ("NAdam", {}),
    ("RAdam", {}),
]
SIZES = {"7 B": 7 * 10**9, "70 B": 70 * 10**9, "1 T": 10**12}
WORLDS = (8, 64, 512, 4096)
NODE = 8  # processes that share a machine, for a mesh of two dimensions
NORMS, OTHERS = 1, 6  # float64 that a process sends: a norm for each way of being spread; worst norm, largest square, four flags


def traced(name: str, settings: dict[str, Any]) -> Traced:
    """The rule of a class with these settings."""
    optimizer = getattr(openadam.torch, name)([torch.nn.Parameter(torch.zeros(1))], **settings)
    return optimizer.member.traced(optimizer.param_groups[0])  # type: ignore[no-any-return]


def states(name: str, settings: dict[str, Any]) -> int:
    """Numbers that the rule remembers of each element."""
    return len(traced(name, settings).element_states)


def held(parameter: int, kinds: int) -> tuple[int, int, int]:
    """Bytes per element of a parameter of so many bytes, its gradient, and its states, which are float32 at least."""
    return parameter, parameter, max(parameter, 4) * kinds


def exchanged(*mesh: int) -> int:
    """Bytes that a process receives in the all_gathers of a step: one over each dimension of the mesh that has others in it."""
    return sum(8 * (NORMS + OTHERS) * (size - 1) for size in mesh)


def number(value: float) -> str:
    """Bytes for people: three digits and a unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PB"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], texts: int = 1) -> list[str]:
    """A table in Markdown; what stands right of the first columns are numbers."""
    head = list(head)
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * texts + ["---:"] * (len(head) - texts), *rows)]


def members() -> list[str]:
    """Bytes per parameter."""
    rows = []
    for name, settings in MEMBERS:
        kinds = states(name, settings)
        call = f"`{name}({', '.join(f'{key}={value}' for key, value in settings.items())})`"
        cells = [f"{p} + {g} + {s} = {p + g + s}" for p, g, s in (held(width, kinds) for width in (4, 2, 8))]
        names = ", ".join(f"`{each}`" for each in traced(name, settings).states if each in traced(name, settings).element_states)
        rows.append([call, names or "none", *cells])
    return table(["class", "states", "float32", "bfloat16", "float64"], rows, texts=2)


def ranks() -> list[str]:
    """Bytes that AdamW's user holds in each process."""
    rows = []
    for size, count in SIZES.items():
        for world in WORLDS:
            p, g, s = held(4, states("AdamW", {}))
            everywhere, zero, fsdp = p + g + s, p + g + s / world, (p + g + s) / world
            rows.append([size, f"{world:,}", *(number(count * each) for each in (everywhere, zero, fsdp))])
    return table(["parameters", "processes", "DDP", "ZeRO", "FSDP2"], rows)


def traffic() -> list[str]:
    """Bytes that a process receives in each step, from the framework and from the optimizer's own exchange."""
    rows = []
    for size, count in SIZES.items():
        for world in WORLDS:
            others = (world - 1) / world * count * 4
            # DDP: a ring all-reduce of the gradients. ZeRO: that, and everybody's parameters. FSDP2: all-gather twice, reduce-scatter once.
            moved = (2 * others, 3 * others, 3 * others)
            rows.append([size, f"{world:,}", *map(number, moved), number(exchanged(world)), number(exchanged(world // NODE, NODE))])
    head = ["parameters", "processes", "DDP", "ZeRO", "FSDP2", "the step, one dimension", f"the step, two dimensions (n × {NODE})"]
    return table(head, rows)


def work() -> list[str]:
    """Bytes of memory that AdamW's step itself reads and writes in each process."""
    kinds = states("AdamW", {})
    check, update = 4, 4 * (2 + kinds) + 4 * (1 + kinds)
    rows = []
    for size, count in SIZES.items():
        rows.append([size, *(number(count / world * (check + update)) for world in (1, *WORLDS))])
    return table(["parameters", *(f"{world:,} process{'es' if world > 1 else ''}" for world in (1, *WORLDS))], rows)


SECTIONS = {
    "Bytes per parameter: parameter + gradient + states": members,
    "Bytes per process, AdamW in float32": ranks,
    "Bytes received by a process in a step, float32": traffic,
    "Bytes read and written by the step of a process, AdamW in float32, everything sharded": work,
}


def main() -> None:
    """Print all the tables."""
    print("\n\n".join("\n".join([f"### {title}", "", *lines()]) for title, lines in SECTIONS.items()))


if __name__ == "__main__":
    main()
