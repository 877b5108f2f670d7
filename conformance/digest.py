"""What is kept in the repository of runs: `results/PLATFORM.json`, a few KB with the counts of each family at each grade."""
from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .bundle import Bundle

FOLDER = Path(__file__).resolve().parent / "results"


def digest(bundles: Sequence[Bundle]) -> dict[str, Any]:
    """Of one platform's bundles, whatever their options (`cuda`, `cuda:interpreted`). A case that several tell counts once.

    families: grade -> family -> verdict -> cases. seconds: of all cases, with whatever else the machine did.
    """
    names = sorted({one.platform.partition(":")[0] for one in bundles})
    if len(names) != 1:
        raise ConfigError(f"a summary is of one platform; these bundles are of {', '.join(names)}")
    families: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    told = {(one.platform, result.case): result for one in bundles for result in one.results}
    for _, result in sorted(told.items()):
        families[result.grade][result.case.partition(":")[0]][str(result.verdict)] += 1
    return {
        "platform": names[0],
        "suite": bundles[0].environment["suite"], "contract": bundles[0].environment["contract"],
        "runs": [_run(one) for one in bundles],
        "families": {grade: {name: dict(counts) for name, counts in sorted(found.items())} for grade, found in sorted(families.items())},
    }


def write(bundles: Sequence[Bundle], folder: Path = FOLDER) -> Path:
    """A line for each family."""
    made = digest(bundles)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{made['platform']}.json"
    path.write_text(_text(made, "") + "\n", encoding="utf-8")
    return path


def _run(bundle: Bundle) -> dict[str, Any]:
    said = bundle.selection
    return {
        "platform": bundle.platform, "cases": len(bundle.results), "left_out": said.partial, "passed": bundle.judgement.passed,
        "counts": bundle.judgement.counts, "seconds": round(sum(one.seconds for one in bundle.results)),
        "written": bundle.environment["written"], "packages": bundle.environment["made_on"][0]["packages"],
    }


def _text(value: Any, indent: str) -> str:
    """JSON whose innermost objects and lists stand on one line."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(part, (dict, list)) for part in parts):
        return json.dumps(value)
    inner = indent + "  "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(name)}: {_text(part, inner)}" for name, part in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _text(part, inner) for part in value) + f"\n{indent}]"
