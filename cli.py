"""The command `inferplane`: parses, runs one command, and turns errors into one message and an exit code.

Exit codes: 0 done, 1 an InferplaneError, 2 wrong usage, 130 interrupted.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import __version__
from .commands import bench, chat, conformance, generate, platforms, serve, tune, verify
from .commands import compile as ahead
from .errors import InferplaneError

COMMANDS = (generate, chat, serve, platforms, verify, conformance, bench, ahead, tune)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="inferplane",
        description="One LLM inference engine for every accelerator.",
        epilog="`inferplane COMMAND --help` shows examples. Environment: INFERPLANE_PLATFORM, INFERPLANE_CACHE, INFERPLANE_LOG, "
               "INFERPLANE_CONFIG, INFERPLANE_API_KEY.",
    )
    made.add_argument("--version", action="version", version=f"inferplane {__version__}")
    commands = made.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except InferplaneError as error:
        print(f"inferplane: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
