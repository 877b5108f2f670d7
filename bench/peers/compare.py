"""The comparison: chosen peers, works and weights, round after round with this engine between them, and the machine's limits."""
from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ...conformance.limits import measure_limits, typical
from ...core.models import model_class
from ...core.quantization import choose_precision
from ...errors import ConfigError, suggest
from ...model_zoo.base import UNQUANTIZED
from ...platforms import registry
from ..machine import describe_machine, today
from ..roofline import Cost, bound, cost
from ..shapes import SHAPES
from ..work import Work
from . import llama_cpp, openvino_genai, ours, transformers_cpu, vllm_cpu
from .protocol import Peer

FORMAT = 2
BENCH = Path(__file__).resolve().parents[1]
MODULES = {module.PEER.name: module for module in (vllm_cpu, llama_cpp, openvino_genai, transformers_cpu)}
PEERS: Mapping[str, Peer] = {name: module.PEER for name, module in MODULES.items()}
OURS = ours.PEER
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Comparison:
    """What to compare. models: a folder for checkpoints and what is converted. pythons: a peer -> its environment's interpreter."""

    shape: str
    peers: Sequence[str]
    works: Sequence[Work]
    weights: Sequence[str]
    rounds: int
    threads: int
    models: Path
    pythons: Mapping[str, Path]

    def __post_init__(self) -> None:
        for peer in self.peers:
            if peer not in PEERS:
                raise ConfigError(f"peer {peer!r} is unknown. {suggest(peer, PEERS)}")
            if not self.pythons[peer].is_file():
                raise ConfigError(
                    f"peer {peer!r}: there is no {self.pythons[peer]}. Make its environment with `nox -s peers-{peer}`, "
                    f"or name another one: --python {peer}=PATH."
                )
        for weights in self.weights:
            if weights not in OURS.weights:
                raise ConfigError(f"weights {weights!r} are unknown. {suggest(weights, OURS.weights)}")
        if self.rounds < 1:
            raise ConfigError(f"rounds must be at least 1; found {self.rounds}.")

    @property
    def checkpoint(self) -> Path:
        return self.models / self.shape / "checkpoint"

    def model(self, peer: str, weights: str) -> Path:
        if PEERS[peer].convert is None:
            return self.checkpoint
        return self.models / self.shape / f"{peer}-{weights}"


def convert(asked: Comparison, tell: Tell) -> None:
    """Writes what is not there yet: each peer's own format, by its own converter, in its own environment."""
    for peer in asked.peers:
        for weights in asked.weights:
            to = asked.model(peer, weights)
            if weights not in PEERS[peer].weights or to.exists():
                continue
            tell(f"converting {asked.shape} to {weights} for {peer}")
            part = to.with_name(to.name + ".part")
            log = to.with_name(to.name + ".log")
            with log.open("w", encoding="utf-8") as said:
                done = subprocess.run([*_script(asked, peer), "convert", "--checkpoint", asked.checkpoint.resolve(), "--weights", weights,
                                       "--to", part.resolve()], cwd=BENCH, stdout=said, stderr=said, check=False)
            if done.returncode:
                raise ConfigError(f"peer {peer!r} cannot convert {asked.checkpoint} to {weights}; {log} says why.")
            part.rename(to)


def compare(asked: Comparison, tell: Tell) -> dict[str, Any]:
    """The record: every run, and what `results` makes of them."""
    platform = registry.named("cpu")
    limits, runs = [measure_limits(platform)], []
    for weights in asked.weights:
        needs = _cost(asked.shape, weights)
        peers = [peer for peer in asked.peers if weights in PEERS[peer].weights]
        with ExitStack() as opened:
            us = opened.enter_context(engine(asked, OURS.name, weights))
            others = {peer: opened.enter_context(engine(asked, peer, weights)) for peer in peers}
            for turn in range(asked.rounds):
                for work in asked.works:
                    for peer, other in others.items():
                        limits.append(measure_limits(platform))
                        ran = us.measure(work)
                        limits.append(measure_limits(platform))
                        most = bound(work, needs, typical(limits[-2:]))
                        for run in (ran | {"bound": asdict(most) if most else None}, other.measure(work)):
                            runs.append(run | {"round": turn, "beside": peer})
                            tell(f"round {turn + 1}, {weights}, {work.name}: {run['peer']} {_told(run)}")
    platform.close()
    return {
        "format": FORMAT, "kind": "peers", "date": today(), "machine": describe_machine(), "shape": asked.shape, "rounds": asked.rounds,
        "threads": asked.threads, "works": [asdict(work) for work in asked.works], "limits": asdict(typical(limits)), "runs": runs,
    }


class Engine:
    """A peer's process: it loads when its first work comes, and waits on standard input between works."""

    def __init__(self, peer: str, weights: str, process: subprocess.Popen[str], log: Path) -> None:
        self.peer, self.weights, self.process, self.log = peer, weights, process, log
        self.failed: str | None = None

    def measure(self, work: Work) -> dict[str, Any]:
        """Its line, with the work's name; of one that ended, what its log says last."""
        if self.failed is None:
            answer = self._ask(f"{work.prompt_tokens}:{work.output_tokens}:{work.requests}")
            if answer:
                return json.loads(answer) | {"work": work.name, "failed": None}
            self.failed = self._last_words()
        return {"peer": self.peer, "weights": self.weights, "work": work.name, "failed": self.failed}

    def _ask(self, work: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(work + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self.process.stdout.readline()

    def _last_words(self) -> str:
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"it ended with {self.process.wait()}"


@contextmanager
def engine(asked: Comparison, peer: str, weights: str) -> Iterator[Engine]:
    model = asked.checkpoint if peer == OURS.name else asked.model(peer, weights)
    room = {
        "model": model.resolve(), "weights": weights, "vocab": SHAPES[asked.shape]["vocab_size"], "threads": asked.threads,
        "tokens": max(work.length_tokens for work in asked.works), "requests": max(work.requests for work in asked.works),
        "kv-tokens": max(work.requests * work.length_tokens for work in asked.works),
    }
    options = [str(part) for name, value in room.items() for part in (f"--{name}", value)]
    log = asked.models / asked.shape / f"{peer}-{weights}.run.log"
    with log.open("w", encoding="utf-8") as said:
        process = _start([*_script(asked, peer), "run", *options], None if peer == OURS.name else BENCH, said)
        try:
            yield Engine(peer, weights, process, log)
        finally:
            process.kill()
            process.communicate()


def _start(command: Sequence[str], folder: Path | None, said: IO[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)


def _script(asked: Comparison, peer: str) -> list[str]:
    """Ours is a module of this package; a peer's environment knows no such package, so its script runs from the folder `bench`."""
    if peer == OURS.name:
        return [sys.executable, "-m", ours.__name__]
    return [str(asked.pythons[peer].absolute()), "-m", ".".join(MODULES[peer].__name__.split(".")[-2:])]


def _cost(shape: str, weights: str) -> Cost:
    config = SHAPES[shape]
    precision = choose_precision(None if weights == "bf16" else weights, UNQUANTIZED)
    return cost(model_class(config["model_type"])(config, dtype="bfloat16", block_tokens=16, precision=precision))


def _told(found: Mapping[str, Any]) -> str:
    return f"failed: {found['failed']}" if found["failed"] else f"{found['tokens_per_s']:,.1f} tokens/s"
