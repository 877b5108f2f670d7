"""`python -m inferplane.bench.peers`: makes the models that are missing, compares, and writes the table and the record."""
from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from ...errors import InferplaneError
from ..work import parse_works
from .compare import PEERS, Comparison, compare, convert
from .make_model import make_model
from .table import markdown


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m inferplane.bench.peers", description=__doc__)
    parser.add_argument("--shape", default="llama-1b", help="default: %(default)s")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="P,...", help="default: %(default)s")
    parser.add_argument("--work", default="decode1,prefill1k,batch16,batch48", metavar="W,...", help="default: %(default)s")
    parser.add_argument("--weights", default="bf16,int8", metavar="W,...", help="bf16, int8, int4 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="of every engine (default: %(default)s)")
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER", help="for checkpoints and what they are converted to")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH",
                        help="a peer's interpreter (default: that of the nox session peers-PEER)")
    parser.add_argument("--make-only", action="store_true", help="make the models and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the record")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="keep the table")
    args = parser.parse_args()
    try:
        return _run(args)
    except InferplaneError as error:
        print(f"inferplane: {error}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    pythons = {peer: Path(f".nox/peers-{peer}/bin/python") for peer in PEERS}
    pythons |= {peer: Path(path) for peer, _, path in (text.partition("=") for text in args.python)}
    listed = {name: [one.strip() for one in getattr(args, name).split(",") if one.strip()] for name in ("peers", "weights")}
    asked = Comparison(
        args.shape, listed["peers"], parse_works(args.work), listed["weights"], args.rounds, args.threads, args.models, pythons,
    )
    make_model(asked.shape, asked.checkpoint)
    convert(asked, _tell)
    if args.make_only:
        return 0
    record = compare(asked, _tell)
    if args.json is not None:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    table = markdown(record)
    if args.markdown is not None:
        args.markdown.write_text(table, encoding="utf-8")
    print(table)
    return 0


def _tell(text: str) -> None:
    print(f"peers: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
