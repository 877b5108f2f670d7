"""Which case kills which bug in a source, kept so that a self-test tries it first: `python -m inferplane.conformance.mutants.killers`."""
from __future__ import annotations

from pathlib import Path

HEAD = "# Bug -> the case that kills it, tried first. Written by `python -m inferplane.conformance.mutants.killers`.\n"


def main() -> None:
    """Tries every bug of every platform that runs here; what survives, or cannot be tried, keeps no line."""
    from ..selftest import selftest
    from . import SOURCE_BUGS

    found = selftest(True, [bug.name for bug in SOURCE_BUGS], lambda one: print(f"{one.name}: {one.case or 'survived'}", flush=True))
    lines = [f'"{one.name}" = "{one.case}"\n' for one in found.bugs if one.case is not None]
    Path(__file__).with_name("killers.toml").write_text(HEAD + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
