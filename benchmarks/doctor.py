"""How good the doctor is on runs made to order: of each disease, whether it was found, and what else was; of healthy runs, what was found at all.

``python benchmarks/doctor.py`` prints what docs/doctor.md shows. An alarm is an error or a warning; a hint is none.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from patients import HEALTHY, SICK, Run

from openadam import record


def seen(path: Path, run: Run) -> tuple[set[str], set[str]]:
    """The rules of a recorded run's alarms, and those of its hints."""
    run(path)
    findings = record.load(path).diagnose()
    return {each.id for each in findings if each.severity != "hint"}, {each.id for each in findings if each.severity == "hint"}


def show(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


def main() -> None:
    warnings.simplefilter("ignore")
    found = ill = well = alarms_all = alarms_other = 0
    sick, healthy = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (id, run)) in enumerate(SICK.items()):
            alarms, hints = seen(Path(folder, f"sick{number}.oadam"), run)
            found += id in alarms | hints
            ill += bool(alarms)
            alarms_all += len(alarms)
            alarms_other += len(alarms - {id})
            told = "alarm" if id in alarms else "hint" if id in hints else "NO"
            sick.append((name, id, told, " ".join(sorted(alarms - {id})), " ".join(sorted(hints - {id}))))
        for number, (name, run) in enumerate(HEALTHY.items()):
            alarms, hints = seen(Path(folder, f"healthy{number}.oadam"), run)
            well += bool(alarms)
            healthy.append((name, " ".join(sorted(alarms)) or "none", " ".join(sorted(hints))))
    show(("disease", "rule", "found by", "other alarms", "other hints"), sick)
    show(("healthy run", "alarms", "hints"), healthy)
    print(f"Recall: {found} of {len(SICK)} diseases. Precision: of {ill + well} runs with an alarm {ill} are ill.")
    print(f"Of the {alarms_all} alarms in these, {alarms_other} are of other rules than the one that was meant, mostly for consequences.")


if __name__ == "__main__":
    main()
