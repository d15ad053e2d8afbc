"""The graph: nodes, and the walk over them. `expression` adds the operators that build it, `notation` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Node", "postorder"]


class Node:
    """An operation and its arguments, or a leaf (a symbol with its space and name, or a constant).

    Spaces of symbols: ``tensor`` (``g``, ``p`` and the direction), ``state`` (what a rule remembers), ``scalar``
    (hyperparameters and the step number ``t``).
    """

    __slots__ = ("arguments", "line", "operation", "value")

    arguments: tuple[Self, ...]

    def __init__(self, operation: str, arguments: tuple[Self, ...] = (), value: Any = None) -> None:
        self.operation = operation
        self.arguments = arguments
        self.value = value
        self.line: tuple[str, int] | None = None  # where it was written, of what may have to be refused later


AnyNode = TypeVar("AnyNode", bound=Node)


def postorder(*roots: AnyNode) -> Iterator[AnyNode]:
    """Every node below the roots once, arguments before users, in a fixed order."""
    seen: set[int] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, expanded = stack.pop()
        if id(node) in seen:
            continue
        if expanded:
            seen.add(id(node))
            yield node
        else:
            stack.append((node, True))
            stack.extend((argument, False) for argument in reversed(node.arguments))
