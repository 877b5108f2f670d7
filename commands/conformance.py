"""`inferplane conformance`: run the suite against a platform, and read, check, join and show what it gave."""
from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..conformance.select import Selection

EXAMPLES = """\
examples:
  inferplane conformance run --platform acme --quick          what to run first: minutes
  inferplane conformance run --platform acme --profile core   what a certificate of the profile needs
  inferplane conformance run --platform acme attention.decode one family
  inferplane conformance run --platform acme 'linear.plain:dtype=bfloat16;m=1;*'
  inferplane conformance run --platform acme --shard 1/4 -o part1
  inferplane conformance run --platform cuda --grade compiled --quick          kernels compiled for chips that are not here
  inferplane conformance run --platform cuda --grade compiled --target sm_90 attention.decode
  inferplane conformance merge part1 part2 part3 part4 -o whole
  inferplane conformance verify whole
  inferplane conformance matrix whole other -o matrix
  inferplane conformance new acme                             a platform package to start from
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "conformance", help="prove a platform, and check what others proved", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Addressed cases against a float64 oracle. Every case replays from its address alone.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    run = actions.add_parser("run", help="run cases on a platform and write a bundle")
    run.add_argument("--platform", metavar="P", required=True, help="a platform, with options after a colon")
    _add_selection(run)
    run.add_argument("--grade", choices=("compiled",), help="what is to be shown, where it is not what the platform can do here: "
                     "compiled compiles every op's kernels for chips that need not be there; a spill or a tile over a budget fails")
    run.add_argument("--target", action="append", default=[], metavar="CHIP", help="at grade compiled: a chip, such as sm_90 "
                     "(several times for several; default: all that the platform knows)")
    run.add_argument("--jobs", type=int, metavar="N", help="cases at a time, each in a process of its own (default: 1); at grade "
                     "compiled, chips at a time (default: one for each processor)")
    run.add_argument("-o", "--output", type=Path, metavar="DIR", help="where the bundle goes (default: conformance-PLATFORM)")
    run.add_argument("--timeout", type=float, metavar="S", help="seconds that a case may take (default: 120; 600 where it is compiled)")
    run.add_argument("--here", action="store_true", help="in this process, for a debugger; a hang or a crash ends the run")
    run.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    run.set_defaults(run=_run)

    listed = actions.add_parser("list", help="list cases")
    _add_selection(listed)
    listed.add_argument("--json", action="store_true", help="print a JSON list of addresses")
    listed.set_defaults(run=_list)

    show = actions.add_parser("show", help="say what one case is")
    show.add_argument("case", metavar="CASE", help="an address")
    show.set_defaults(run=_show)

    verify = actions.add_parser("verify", help="recompute a bundle's verdict")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify.add_argument("--json", action="store_true", help="print one JSON object")
    verify.set_defaults(run=_verify)

    merge = actions.add_parser("merge", help="join the bundles of all shards")
    merge.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    merge.set_defaults(run=_merge)

    matrix = actions.add_parser("matrix", help="platforms across, features down: a markdown table and an HTML page")
    matrix.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="a bundle's folder, or a summary's file")
    matrix.add_argument("-o", "--output", type=Path, default=Path("matrix"), metavar="DIR", help="where matrix.md and matrix.html go")
    matrix.set_defaults(run=_matrix)

    summary = actions.add_parser("summary", help="a bundle in a few kilobytes, for a repository to keep and `matrix` to show")
    summary.add_argument("bundle", type=Path, metavar="BUNDLE")
    summary.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    summary.set_defaults(run=_summary)

    selftest = actions.add_parser("selftest", help="show that the suite kills planted bugs and lets legal variants pass")
    selftest.add_argument("names", nargs="*", metavar="NAME", help="only these bugs and variants")
    selftest.add_argument("--quick", action="store_true", help="with the quick cases only")
    selftest.add_argument("--platform", metavar="P", help="only bugs of this platform, such as reference or cuda:interpreted")
    selftest.add_argument("--json", action="store_true", help="print one JSON object")
    selftest.set_defaults(run=_selftest)

    new = actions.add_parser("new", help="write the skeleton of a platform package")
    new.add_argument("name", metavar="NAME", help="what INFERPLANE_PLATFORM will say")
    new.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: inferplane-NAME")
    new.set_defaults(run=_new)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queries", nargs="*", metavar="QUERY", help="a prefix of addresses, or a pattern with * and ?")
    parser.add_argument("--profile", metavar="NAME", help="a frozen list of cases, such as core")
    parser.add_argument("--quick", action="store_true", help="a thin sample of every family")
    parser.add_argument("--covering", type=int, choices=(1, 2), default=0, metavar="N",
                        help="of each family what it takes for each value of a parameter (1), or of any two of them (2), to occur")
    parser.add_argument("--shard", default="1/1", metavar="K/N", help="every N-th case, from the K-th on")


def _selection(args: argparse.Namespace, targets: tuple[str, ...] = ()) -> Selection:
    from ..conformance.select import Selection
    from ..errors import ConfigError

    if (jobs := getattr(args, "jobs", None)) is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: at least 1")
    k, _, n = args.shard.partition("/")
    if not (k.isdecimal() and n.isdecimal()):
        raise ConfigError(f"--shard {args.shard}: write K/N, for instance 1/4")
    return Selection(args.profile, args.quick, tuple(args.queries), (int(k), int(n)), args.covering, targets)


def _run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from ..conformance import bundle, live, runner, xfail
    from ..conformance.case import Verdict
    from ..conformance.cases import all_cases
    from ..errors import ConfigError
    from ..platforms import registry

    if args.grade:
        return _compile(args)
    if args.target:
        raise ConfigError("--target is for kernels that are compiled for chips that need not be there; add --grade compiled")
    selection = _selection(args)
    platform = registry.named(args.platform)
    known, selection = xfail.excuses(type(platform)), selection.for_grade(platform.capabilities.grade)
    platform.close()
    cases = selection.cases()
    stream = (runner.run_here(runner.open_rig(args.platform), cases, known) if args.here else
              runner.run(args.platform, cases, known, timeout_seconds=args.timeout or 120.0, jobs=args.jobs or 1))
    results = list(stream) if args.json else live.watch(stream, len(cases), args.platform, Console(stderr=True))
    refused = [one.case for one in results if one.verdict is Verdict.UNSUPPORTED]
    stale = xfail.stale(known, (case.id for case in all_cases()), refused) if known else []
    folder = args.output or Path(f"conformance-{args.platform.replace(':', '-')}")
    found = bundle.write(folder, args.platform, results, selection, stale)
    if args.json:
        print(json.dumps({**asdict(found), "bundle": str(folder)}, indent=2))
    else:
        live.tell(args.platform, results, found, folder, Console())
    return 0 if found.passed else 1


def _compile(args: argparse.Namespace) -> int:
    import os

    from rich.console import Console

    from ..conformance import bundle, compiled, live
    from ..conformance.summary import kernels_of
    from ..errors import ConfigError

    if args.here or (args.jobs is not None and args.jobs < 1):
        raise ConfigError("--grade compiled takes --jobs of at least 1, and no --here: compilers may bring a process down")
    selection = _selection(args, compiled.targets_of(args.platform, args.target)).for_grade(compiled.GRADE)
    cases, targets = selection.cases(), selection.targets
    codes: dict[str, Any] = {}
    stream = compiled.run(args.platform, targets, cases, codes, timeout_seconds=args.timeout or 600.0,
                          jobs=args.jobs or min(len(targets), os.cpu_count() or 1))
    results = list(stream) if args.json else live.watch(stream, len(cases) * len(targets), args.platform, Console(stderr=True))
    order = {case.id: place for place, case in enumerate(cases)}
    results.sort(key=lambda one: (targets.index(one.target), order[one.case]))
    folder = args.output or Path(f"conformance-{args.platform}-{args.grade}")
    found = bundle.write(folder, args.platform, results, selection, codes=codes)
    kernels = kernels_of(codes.values())
    if args.json:
        print(json.dumps({**asdict(found), "bundle": str(folder), "kernels": [asdict(one) for one in kernels]}, indent=2))
    else:
        live.tell_kernels(kernels, Console())
        live.tell(args.platform, results, found, folder, Console())
    return 0 if found.passed else 1


def _list(args: argparse.Namespace) -> int:
    cases = [case.id for case in _selection(args).cases()]
    print(json.dumps(cases) if args.json else "\n".join(cases))
    return 0


def _show(args: argparse.Namespace) -> int:
    from ..conformance.cases import find
    from ..conformance.runner import replay

    case = find(args.case)
    print(f"{case.id}\n  family  {case.family.name}, level L{case.level}\n  seed    {case.address.seed}")
    for name, values in case.family.axes.items():
        print(f"  {name:12} {case.address.values[name]}   of {', '.join(values)}")
    print(f"  replay  {replay('PLATFORM', case.id)}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from ..conformance import bundle

    checked = bundle.verify(args.bundle)
    found = checked.judgement
    if args.json:
        print(json.dumps({**asdict(found), "platform": checked.platform}, indent=2))
    else:
        print(f"{args.bundle} is as it was written: {checked.platform} {'passed' if found.passed else 'failed'} "
              f"{sum(found.counts.values())} cases ({', '.join(f'{n} {verdict}' for verdict, n in found.counts.items())}); "
              f"certificate: {'yes' if found.certificate else 'no, ' + '; '.join(found.withheld or ['not everything passed'])}")
    return 0 if found.passed else 1


def _merge(args: argparse.Namespace) -> int:
    from ..conformance import bundle

    found = bundle.merge(args.bundles, args.output)
    print(f"{args.output}: {', '.join(f'{n} {verdict}' for verdict, n in found.counts.items())}; {'passed' if found.passed else 'failed'}")
    return 0 if found.passed else 1


def _matrix(args: argparse.Namespace) -> int:
    from ..conformance import bundle, matrix, summary

    made = matrix.write(args.output, [summary.read(path) if path.suffix == ".json" else bundle.verify(path) for path in args.bundles])
    print("\n".join(map(str, made)))
    return 0


def _summary(args: argparse.Namespace) -> int:
    from ..conformance import bundle, summary

    summary.save(args.output, bundle.verify(args.bundle))
    print(args.output)
    return 0


def _selftest(args: argparse.Namespace) -> int:
    from rich.console import Console

    from ..conformance.selftest import selftest, show

    console = Console(stderr=True)
    with console.status("planting bugs") as status:
        report = selftest(args.quick, args.names or None,
                          lambda found: status.update(f"{found.name}: {found.case or 'survived or passed'}"), args.platform)
    if args.json:
        print(json.dumps({**asdict(report), "sound": report.sound}, indent=2))
    else:
        show(report)
    return 0 if report.sound else 1


def _new(args: argparse.Namespace) -> int:
    from ..conformance.skeleton import write_skeleton

    folder = write_skeleton(args.name, args.output or Path(f"inferplane-{args.name}"))
    print(f"wrote {folder}; next: pip install -e {folder} && inferplane conformance run --platform {args.name} contract")
    return 0
