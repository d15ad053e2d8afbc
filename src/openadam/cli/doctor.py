"""``openadam doctor``: what is wrong with a recorded run, with evidence and what helps."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import RecordError
from .arguments import UsageError
from .output import print_json, printable

if TYPE_CHECKING:
    from ..record import Finding

__all__ = ["add_arguments", "run"]

WIDTH = 80
SHOWN = 5  # tensors of one disease
NOISE = ("D09", "D24", "D10", "D17", "D18", "D25", "D14", "D26")  # whose null value is what noise alone would give


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a recording")
    parser.add_argument("--track", metavar="NAME", help="only this optimizer")
    parser.add_argument("--json", action="store_true", help="findings as JSON")


def run(given: argparse.Namespace) -> int:
    from .. import record

    try:
        session = record.load(given.file)
        findings = record.diagnose(session, given.track)
    except RecordError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{error.filename or given.file}: {error.strerror or error}") from None
    tracks = [track for name, track in session.tracks.items() if given.track in (None, name)]
    steps = max((track.steps for track in tracks), default=0)
    if given.json:
        print_json({"file": given.file, "steps": steps, "findings": [_plain(each) for each in findings]})
    else:
        counts = [sum(each.severity == severity for each in findings) for severity in ("error", "warning", "hint")]
        told = ", ".join(f"{count} {name}{'s' if count != 1 else ''}" for count, name in zip(counts, ("error", "warning", "hint"), strict=True))
        observed = max((track.observed for track in tracks), default=0)
        print(f"{printable(given.file)}: {steps} steps, {observed} of them observed: {told}")
        several = len(session.tracks) > 1
        groups: dict[tuple[str, ...], list[Finding]] = {}
        for each in findings:
            groups.setdefault((each.severity, each.id, each.track), []).append(each)
        for same in groups.values():
            _show(same, several)
    return int(any(each.severity != "hint" for each in findings))


def _plain(finding: Finding) -> dict[str, Any]:
    evidence = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in finding.evidence.items()}
    return {
        "id": finding.id, "severity": finding.severity, "track": finding.track, "tensor": finding.tensor, "first_step": finding.first_step,
        "last_step": finding.last_step, "evidence": evidence, "meaning": finding.meaning, "remedy": finding.remedy, "source": finding.source,
    }  # fmt: skip


def _show(same: list[Finding], several: bool) -> None:
    """One disease, and all tensors that have it."""
    first = same[0]
    print()
    _wrapped(f"{first.severity.upper()} {first.id}: {first.title}" + (f" ({first.track})" if several else ""), "")
    for each in same[:SHOWN]:
        _wrapped(f"{_where(each)}{_evidence(each)}", "  ")
    if len(same) > SHOWN:
        _wrapped(f"and {len(same) - SHOWN} more: {', '.join(str(each.tensor) for each in same[SHOWN : SHOWN + 20])}{_more(same[SHOWN + 20 :])}", "  ")
    for name, text in (("means", first.meaning), ("try", first.remedy), ("see", first.source)):
        _wrapped(f"{name + ':':6} {text}", "  ", 7)


def _more(rest: Iterable[Finding]) -> str:
    return ", …" if list(rest) else ""


def _where(finding: Finding) -> str:
    parts = [finding.tensor] if finding.tensor is not None else []
    if finding.first_step is not None:
        same = finding.first_step == finding.last_step
        parts.append(f"step {finding.first_step}" if same else f"steps {finding.first_step} to {finding.last_step}")
    return f"{', '.join(parts)}: " if parts else ""


def _evidence(finding: Finding) -> str:
    known = dict(finding.evidence)
    reading, value, null, threshold = (known.pop(name) for name in ("reading", "value", "null", "threshold"))
    usual = "noise alone would give" if finding.id in NOISE else "healthy is"
    also = "".join(f"; {name} {_shown(each)}" for name, each in known.items() if each is not None)
    return f"{reading} {_shown(value)}, {usual} {_shown(null)} (alarm at {_shown(threshold)}){also}"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _wrapped(text: str, indent: str, hanging: int = 2) -> None:
    rest = indent + " " * hanging
    for line in textwrap.wrap(printable(text), WIDTH, initial_indent=indent, subsequent_indent=rest, break_on_hyphens=False):
        print(line)
