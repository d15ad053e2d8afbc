"""Runs the commands that documents quote, and puts what they print now in the place of what they printed: ``make documents``.

A block of text that begins with ``$ command`` is the command and its output. Pictures that it draws stay beside the document.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"^```text\n\$ ([^\n]*)\n\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def fresh(command: str, folder: Path) -> str:
    """What a command prints, run in a folder, without where it says that it has written a file."""
    program, *arguments = shlex.split(command)
    done = subprocess.run([str(Path(sys.executable).with_name(program)), *arguments], cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0 and (done.returncode, arguments[0]) != (1, "doctor"):  # which says by 1 that it has found something
        raise SystemExit(f"{command}: exit code {done.returncode}")
    lines = [line.rstrip() for line in done.stdout.splitlines() if not line.startswith("Written: ")]
    return "\n".join(lines).strip("\n")


def main() -> None:
    for name in sys.argv[1:]:
        document = Path(name)
        text = document.read_text()
        for block in BLOCK.finditer(text):
            command = block.group(1)
            print(f"{document}: {command}", flush=True)
            text = text.replace(block.group(0), f"```text\n$ {command}\n\n{fresh(command, document.parent)}\n```")
            document.write_text(text)


if __name__ == "__main__":
    main()
