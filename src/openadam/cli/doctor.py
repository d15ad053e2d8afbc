"""``openadam doctor``: what is wrong with a recorded run, with evidence and what helps."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import RecordError
from .arguments import UsageError, add_recording, refuse_no_track
from .output import print_json, printable

if TYPE_CHECKING:
    from ..record import Finding

__all__ = ["add_arguments", "run"]

WIDTH = 80
STATES = {"ended": "", "running": "; it is running", "killed": "; it never ended, and its process is gone", "open": "; it has not ended"}
SHOWN = 5  # tensors of one disease


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recording(parser)
    parser.add_argument("--json", action="store_true", help="findings as JSON")


def run(given: argparse.Namespace) -> int:
    from .. import record

    try:
        session = record.load(given.file, given.session)
        refuse_no_track(session, given.track)
        findings = record.diagnose(session, given.track)
    except RecordError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"{error.filename or given.file}: {error.strerror or error}") from None
    tracks = [track for name, track in session.tracks.items() if given.track in (None, name)]
    steps = max((track.steps for track in tracks), default=0)
    if given.json:
        print_json({"file": given.file, "state": session.state, "steps": steps, "findings": [_plain(each) for each in findings]})
    else:
        diseases = record.by_disease(findings)
        told = ", ".join(_counted(sum(same[0].severity == severity for same in diseases), severity) for severity in ("error", "warning", "hint"))
        observed = max((track.observed for track in tracks), default=0)
        print(f"{printable(given.file)}: {steps} steps, {observed} of them observed{STATES[session.state]}: {told}")
        several = len(session.tracks) > 1
        for same in diseases:
            _show(same, several)
    return int(any(each.severity != "hint" for each in findings))


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'s' if count != 1 else ''}"


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
        _wrapped(": ".join(filter(None, [each.where, each.seen])), "  ")
    if len(same) > SHOWN:
        _wrapped(f"and {len(same) - SHOWN} more: {', '.join(str(each.tensor) for each in same[SHOWN : SHOWN + 20])}{_more(same[SHOWN + 20 :])}", "  ")
    for name, text in (("means", first.meaning), ("try", first.remedy), ("see", first.source)):
        _wrapped(f"{name + ':':6} {text}", "  ", 7)


def _more(rest: Iterable[Finding]) -> str:
    return ", …" if list(rest) else ""


def _wrapped(text: str, indent: str, hanging: int = 2) -> None:
    rest = indent + " " * hanging
    for line in textwrap.wrap(printable(text), WIDTH, initial_indent=indent, subsequent_indent=rest, break_on_hyphens=False):
        print(line)
