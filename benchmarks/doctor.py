"""How good the doctor is on runs made to order: of each disease, whether it was found, and what else was; of healthy runs, what was found at all.

``python benchmarks/doctor.py`` prints the table of docs/doctor.md. Hints are no alarms.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from patients import HEALTHY, SICK

from openadam import record


def main() -> None:
    warnings.simplefilter("ignore")
    found_total, true_alarms, alarms_total = 0, 0, 0
    lines = ["| disease | rule | found | other alarms | other hints |", "| --- | --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as folder:
        for name, (id, run) in SICK.items():
            path = Path(folder, f"{len(lines)}.oadam")
            run(path)
            findings = record.load(path).diagnose()
            hit = any(each.id == id for each in findings)
            alarms = sorted({each.id for each in findings if each.severity != "hint"} - {id})
            hints = sorted({each.id for each in findings if each.severity == "hint"} - {id})
            found_total += hit
            lines.append(f"| {name} | {id} | {'yes' if hit else 'NO'} | {' '.join(alarms)} | {' '.join(hints)} |")
        lines += ["", "| healthy run | alarms | hints |", "| --- | --- | --- |"]
        for name, run in HEALTHY.items():
            path = Path(folder, f"{len(lines)}.oadam")
            run(path)
            findings = record.load(path).diagnose()
            alarms = sorted({each.id for each in findings if each.severity != "hint"})
            alarms_total += bool(alarms)
            lines.append(f"| {name} | {' '.join(alarms) or 'none'} | {' '.join(sorted({e.id for e in findings if e.severity == 'hint'}))} |")
    true_alarms = found_total
    print("\n".join(lines))
    print(f"\nRecall: {found_total} of {len(SICK)} diseases. Precision: {true_alarms} of {true_alarms + alarms_total} runs with an alarm were ill.")


if __name__ == "__main__":
    main()
