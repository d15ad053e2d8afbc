"""Prints the native kernels and the scalars of a step from the rules; the build runs it before it compiles."""

from __future__ import annotations

import sys
import types
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "openadam"


MARK = "// Printed by native/generate.py from src/openadam/rules.py and measures.py; not to be edited."


def kernels() -> str:
    """The generated kernels: a function per program, and tables of them with their digests."""
    from openadam.language import cpp
    from openadam.measures import MEASURES, printed_norm, printed_with
    from openadam.rules import FAMILY, PREPARE, update_program

    updates = [update_program(rule.trace(**choice)) for rule in FAMILY for choice in rule.variants()]
    parts = [MARK]
    parts += [cpp.update(program) for program in [PREPARE, *updates]]
    parts += [printed_with(program) for program in updates]
    parts.append(printed_norm())
    rows = [f'"{p.name}", "{p.digest}", {p.name}, {len(p.states)}, {len(p.scalars)})' for p in [PREPARE, *updates]]
    parts.append("#define UPDATE_KERNELS(PREPARE, X) \\\n" + " \\\n".join(f"  {'X' if k else 'PREPARE'}({row}" for k, row in enumerate(rows)))
    rows = [f'  X("{m.name}", "{m.digest}", {str(m.reduction == "max").lower()})' for m in MEASURES]
    parts.append("#define MEASURE_KERNELS(X) \\\n" + " \\\n".join(rows))
    return "\n\n".join(parts) + "\n"


def scalar_programs() -> str:
    """The generated scalars: a function per kernel, in the kernels' order, and a table of them."""
    from openadam.language import cpp
    from openadam.rules import FAMILY, PREPARE, update_program

    programs = [PREPARE, *(update_program(rule.trace(**choice)) for rule in FAMILY for choice in rule.variants())]
    rows = [f'  X("{" ".join(p.hyperparameters)}", {p.name}_scalars, {len(p.once)}, {len(p.memory)})' for p in programs]
    return "\n\n".join([MARK, *map(cpp.scalars, programs), "#define SCALAR_PROGRAMS(X) \\\n" + " \\\n".join(rows)]) + "\n"


def main() -> None:
    """Write the two headers to the folder given."""
    package = types.ModuleType("openadam")  # the rules need the standard library only; the package itself needs NumPy
    package.__path__ = [str(SOURCE)]
    sys.modules["openadam"] = package
    folder = Path(sys.argv[1])
    (folder / "generated_kernels.hpp").write_text(kernels())
    (folder / "generated_scalars.hpp").write_text(scalar_programs())


if __name__ == "__main__":
    main()
