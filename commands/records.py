"""A measurement's record: the options that say where it goes, and giving it to a person or a file."""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

PRINTED = Path("-")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", nargs="?", type=Path, const=PRINTED, metavar="FILE",
                        help="print the record instead of the table; with a file, the same as --output")
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the record in a file, too")


def give(record: dict[str, Any], args: argparse.Namespace) -> None:
    for file in _kept(args).values():
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if args.json == PRINTED:
        print(json.dumps(record, indent=1))
    else:
        from rich.console import Console

        from ..bench.report import show

        show(record, Console())


def _kept(args: argparse.Namespace) -> dict[str, Path]:
    """Option -> the file in which it keeps the record."""
    asked = {"--output": args.output, "--json": args.json}
    return {option: file for option, file in asked.items() if file not in (None, PRINTED)}


def check(args: argparse.Namespace) -> None:
    for option, file in _kept(args).items():
        check_file(option, file)


def check_file(option: str, file: Path) -> None:
    """Before minutes of measuring, not after them."""
    from ..errors import ConfigError

    if file.is_dir() or not file.parent.is_dir():
        found = "it is a folder" if file.is_dir() else "its folder does not exist"
        raise ConfigError(f"{option} {file} cannot be written: {found}. Give a file.")
