"""``openadam inspect``: what a checkpoint file holds, without loading it."""

from __future__ import annotations

import argparse

from .output import assignments, print_columns, print_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--verify", action="store_true", help="also read all tensors and verify their checksums")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(given: argparse.Namespace) -> int:
    from .. import checkpoint

    found = checkpoint.inspect(given.file, verify=given.verify)
    if given.json:
        print_json(found)
        return 0
    rows = [
        ("file", given.file),
        ("format", f"{found['format']}, {found['bytes']} bytes"),
        ("checksums", "all verified" if found["verified"] else "of the header verified; --verify checks the tensors too"),
        ("rule", f"{found['rule']}, {found['coupling']} weight decay"),
        ("steps", f"{found['steps']}, and {found['skipped']} skipped"),
    ]
    for index, group in enumerate(found["groups"] or ()):
        settings = {name: value for name, value in group.items() if name != "params"}
        rows.append((f"group {index}", f"{len(group['params'])} parameters, {assignments(settings)}"))
    print_columns(rows)
    print()
    print_columns(
        [
            ("TENSOR", "DTYPE", "SHAPE", "BYTES"),
            *((tensor["name"], tensor["dtype"], " x ".join(map(str, tensor["shape"])) or "scalar", tensor["bytes"]) for tensor in found["tensors"]),
        ]
    )
    return 0
