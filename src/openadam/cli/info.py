"""``openadam info``: what this installation runs on, and why."""

from __future__ import annotations

import argparse
import os
import platform
import warnings

import numpy as np

from .. import engine as engines
from .._version import __version__
from ..compiling import kept_kernels, kernels_folder
from ..errors import NativeMissingWarning
from ..family import MEMBERS
from ..rules import update_program
from .output import print_columns, print_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(given: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NativeMissingWarning)  # this command says it in its own words
        chosen = {name: engines.choose_engine(update_program(member.rule.trace())) for name, member in MEMBERS.items() if member.rule is not None}
    isas = engines.native_isas()
    others = [name for name, engine in chosen.items() if engine.name == "reference"]
    if os.environ.get("OPENADAM_ENGINE") == "reference":
        reason = "OPENADAM_ENGINE=reference is set"
    elif not isas:
        try:
            from .. import _native  # noqa: F401

            reason = "the native part has no kernels for this processor"
        except ImportError as error:
            reason = f"the native part cannot be imported: {error}"
    elif others:
        reason = f"no kernels for the present rules of {', '.join(others)}; reinstall to rebuild them"
    else:
        reason = "there are kernels for every member of the family"
    used = next((engine for engine in chosen.values() if engine.name == "native"), chosen["adam"])
    facts = {
        "version": __version__,
        "engine": used.name,
        "reason": reason,
        "isa": used.isa,
        "isas": isas,
        "threads": engines.resolve_threads(None),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    kept = kept_kernels()
    if given.json:
        print_json({**facts, "compiled": [{"rule": each.rule, "isa": each.isa, "bytes": each.bytes, "file": str(each.path)} for each in kept]})
        return 0
    available = f"this processor runs {', '.join(isas)}" if isas else "none available"
    shown = {
        "openadam": __version__,
        "engine": f"{used.name} ({reason})",
        "isa": f"{used.isa} ({available})",
        **{name: facts[name] for name in ("threads", "numpy", "python")},
        "compiled": f"{', '.join(f'{each.rule} ({each.isa})' for each in kept)}: in {kernels_folder()}" if kept else "no rules of your own",
    }
    print_columns(shown.items())
    return 0
