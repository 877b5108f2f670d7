"""The load tool counts what it should, tells what a server did wrong, and measures a real server to the end or to an interrupt."""
from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferplane.cli import main
from inferplane.errors import ConfigError

pytest.importorskip("httpx2")

from inferplane.bench import serve_soak
from inferplane.bench.serve import Target, run_serve
from inferplane.bench.serve_client import Trip, events
from inferplane.bench.serve_figures import Slo, figures, spread
from inferplane.bench.serve_load import Conversation, Load, parse_tokens
from inferplane.bench.serve_soak import Soak, checks

SMALL = ("--prompt-tokens", "12", "--output-tokens", "6")
OWN = ("--platform", "cpu", "--kv-cache-memory-gb", "0.05")


def silent(_: object) -> None:
    """Nobody watches."""


# Figures

def trip(due: float, first: float, gap: float, tokens: int) -> Trip:
    """An answered request whose tokens come one by one."""
    arrivals = [due + first + gap * place for place in range(tokens)]
    return Trip(due, 10, due, arrivals, list(range(tokens)), tokens, arrivals[-1])


def test_percentiles_are_those_of_a_ramp() -> None:
    found = spread([one / 1e3 for one in range(101)])
    assert found is not None
    assert found == pytest.approx({
        "mean": 50, "min": 0, "p1": 1, "p5": 5, "p10": 10, "p25": 25, "p50": 50, "p75": 75, "p90": 90, "p95": 95, "p99": 99, "max": 100,
    })
    assert spread([]) is None


def test_rates_and_latencies_are_those_of_the_requests_that_ended_well() -> None:
    late = trip(2.0, first=0.3, gap=0.05, tokens=3)
    late.sent = 2.1
    refused = Trip(1.0, 10, 1.0, ended=1.1, error="429 queue_full", said="too many")
    running = Trip(9.0, 10, 9.0, [9.5])
    found = figures([trip(0.0, first=0.1, gap=0.02, tokens=5), late, refused, running], Slo(), began=0.0, ended=10.0)
    assert (found["requests"], found["completed"], found["unfinished"]) == (4, 2, 1)
    assert found["errors"] == {"429 queue_full": 1} and found["errors_said"] == {"429 queue_full": "too many"}
    assert found["requests_per_second"] == pytest.approx(0.2)
    assert found["output_tokens_per_second"] == pytest.approx(0.8)
    assert found["total_tokens_per_second"] == pytest.approx(2.8)
    assert found["ttft_ms"]["mean"] == pytest.approx(200), "from when it was due, not from when it was sent"
    assert found["itl_ms"]["p50"] == pytest.approx(20) and found["itl_ms"]["max"] == pytest.approx(50)
    assert found["mean_itl_ms"]["mean"] == pytest.approx(35)
    assert found["end_to_end_ms"]["max"] == pytest.approx(400)
    assert found["late_ms"]["max"] == pytest.approx(100)
    assert found["goodput"] is None


@pytest.mark.parametrize(("slo", "good"), [
    (Slo(ttft_ms=150), 1), (Slo(ttft_ms=350), 2), (Slo(itl_ms=30), 1), (Slo(itl_ms=60), 2), (Slo(350, 30), 1), (Slo(150, 10), 0),
], ids=str)
def test_goodput_counts_the_requests_that_kept_every_limit(slo: Slo, good: int) -> None:
    trips = [trip(0.0, first=0.1, gap=0.02, tokens=5), trip(1.0, first=0.3, gap=0.05, tokens=3), Trip(1.0, ended=1.1, error="500")]
    found = figures(trips, slo, began=0.0, ended=4.0)["goodput"]
    assert (found["good"], found["requests_per_second"]) == (good, good / 4)
    assert found["share"] == pytest.approx(good / 3), "a request that failed is not good either"


def test_the_timeline_holds_every_token_and_who_was_under_way() -> None:
    trips = [trip(0.0, first=1.0, gap=1.0, tokens=6), trip(3.0, first=0.5, gap=0.5, tokens=4)]
    line = figures(trips, Slo(), began=0.0, ended=6.0)["timeline"]
    steps = len(line["seconds"])
    assert sum(line["tokens_per_second"]) * 6.0 / steps == pytest.approx(10)
    assert line["running"][steps // 4] == 1 and line["running"][steps * 2 // 3 - 1] == 2
    assert line["seconds"][-1] == pytest.approx(6.0)


# Load

def test_a_conversation_grows_by_its_turns_and_repeats_with_its_seed() -> None:
    load = Load(concurrency=1, prompt_tokens=(3, 9), output_tokens=(2, 5), shared_prefix_tokens=7, seed=5)
    one, same, other = Conversation(load, 0), Conversation(load, 0), Conversation(load, 1)
    first, tokens = one.ask()
    assert (first, tokens) == same.ask() and first != other.ask()[0]
    assert 10 <= len(first) <= 16 and 2 <= tokens <= 5
    one.hear([1, 2])
    second, _ = one.ask()
    assert second[:len(first) + 2] == [*first, 1, 2] and 3 <= len(second) - len(first) - 2 <= 9
    assert other.ask()[0][:7] == first[:7], "all begin with the shared prefix"


def test_lengths_of_a_range_reach_both_ends() -> None:
    load = Load(concurrency=1, prompt_tokens=(2, 4))
    assert {len(Conversation(load, place).ask()[0]) for place in range(60)} == {2, 3, 4}


@pytest.mark.parametrize(("text", "tokens"), [("128", (128, 128)), ("64-256", (64, 256)), ("5 - 5", (5, 5))])
def test_tokens_are_a_number_or_a_range(text: str, tokens: tuple[int, int]) -> None:
    assert parse_tokens("--prompt-tokens", text) == tokens


@given(st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1)), st.data())
def test_events_are_the_same_however_the_bytes_are_cut(texts: list[str], data: st.DataObject) -> None:
    stream = b": waiting\n\n" + b"".join(f"data: {json.dumps(text)}\n\n".encode() for text in texts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)))))

    async def read() -> list[bytes]:
        async def pieces() -> Any:
            for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                yield stream[start:end]

        return [event async for event in events(pieces())]

    assert [json.loads(event) for event in asyncio.run(read())] == texts


# Against a server whose pauses are known

class Fake:
    """Answers as OpenAI's API does, at its own pace: `first` seconds to the first token of request n, `gap` between tokens."""

    def __init__(self) -> None:
        self.first: Callable[[int], float] = lambda _: 0.0
        self.gap = 0.0
        self.fault: Callable[[int], str | None] = lambda _: None
        self.asked: list[dict[str, Any]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Not here."""

            def do_GET(self) -> None:
                known = self.path == "/v1/models"
                models = {"data": [{"id": "fake", "max_model_len": 1000}, {"id": "other"}]}
                self._whole(200 if known else 404, models if known else {})

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                fake.asked.append(asked)
                place = len(fake.asked) - 2  # the first one warms up
                fault = fake.fault(place)
                if fault == "refuse":
                    return self._whole(429, {"error": {"message": "come back later", "type": "t", "param": None, "code": "queue_full"}})
                self.send_response(200)
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                time.sleep(fake.first(place))
                for token in range(asked["max_tokens"]):
                    if token:
                        time.sleep(fake.gap)
                    self._event({"choices": [{"text": "", "token_ids": [token], "finish_reason": None}]})
                    if fault == "hang up":
                        self.close_connection = True
                        return None
                    if fault == "fail":
                        self._event({"error": {"message": "it broke", "type": "server_error", "param": None, "code": "engine_failed"}})
                        break
                else:
                    self._event({"choices": [], "usage": {"completion_tokens": asked["max_tokens"]}})
                if fault != "stop early":
                    self._chunk(b"data: [DONE]\n\n")
                self._chunk(b"")
                return None

            def _whole(self, status: int, body: Any) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def _event(self, body: Any) -> None:
                self._chunk(f"data: {json.dumps(body)}\n\n".encode())

            def _chunk(self, data: bytes) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.target = Target(f"http://127.0.0.1:{self.server.server_address[1]}/v1", timeout_seconds=10)

    def measure(self, load: Load, slo: Slo | None = None) -> Any:
        [found] = run_serve(load, slo or Slo(), self.target, silent)["results"]
        return found


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_a_slow_servers_pauses_are_what_is_measured(fake: Fake) -> None:
    fake.first, fake.gap = lambda place: 0.6 if place % 2 else 0.1, 0.05
    found = fake.measure(Load(concurrency=1, requests=6, prompt_tokens=(5, 5), output_tokens=(4, 4)), Slo(ttft_ms=350, itl_ms=1000))
    assert found["completed"] == 6 and found["output_tokens_per_second"] == pytest.approx(24 / found["seconds"])
    assert 100 <= found["ttft_ms"]["min"] < 350 and 600 <= found["ttft_ms"]["max"] < 1000
    assert found["itl_ms"]["min"] > 25 and found["mean_itl_ms"]["p50"] < 150, "a token that is read late is closer to the next one"
    assert found["goodput"]["good"] == 3
    assert 0 < found["client_cpu_seconds"] < found["seconds"]


def test_an_open_loop_sends_whoever_is_still_waiting(fake: Fake) -> None:
    fake.first = lambda _: 0.8
    found = fake.measure(Load(rate=40.0, requests=20, prompt_tokens=(5, 5), output_tokens=(1, 1)))
    assert found["completed"] == 20 and found["seconds"] < 20 * 0.8 / 2
    assert max(found["timeline"]["running"]) > 5
    assert found["itl_ms"] is None, "one token has no gap"


def test_a_closed_loop_keeps_so_many_under_way(fake: Fake) -> None:
    fake.first = lambda _: 0.05
    found = fake.measure(Load(concurrency=3, duration_seconds=1.0, prompt_tokens=(5, 5), output_tokens=(2, 2)))
    assert max(found["timeline"]["running"]) <= 3
    assert 1.0 <= found["seconds"] < 3.0 and found["completed"] == found["requests"] >= 6


def test_a_chat_sends_what_was_said_before_after_a_time_to_think(fake: Fake) -> None:
    load = Load(concurrency=1, requests=3, prompt_tokens=(5, 5), output_tokens=(2, 2), turns=3, think_seconds=0.01)
    found = fake.measure(load)
    first, second, third = (asked["prompt"] for asked in fake.asked[1:])
    assert second[:7] == [*first, 0, 1] and third[:12] == second
    assert (len(first), len(second), len(third)) == (5, 12, 19) and found["prompt_tokens"] == 36


@pytest.mark.parametrize(("fault", "kind", "said"), [
    ("refuse", "429 queue_full", "come back later"), ("fail", "stream engine_failed", "it broke"),
    ("hang up", "connection", None), ("stop early", "stream cut", None),
])
def test_errors_are_told_by_their_kind(fake: Fake, fault: str, kind: str, said: str | None) -> None:
    fake.fault = lambda place: fault if place == 1 else None
    found = fake.measure(Load(concurrency=1, requests=4, prompt_tokens=(5, 5), output_tokens=(2, 2)))
    assert found["errors"] == {kind: 1} and found["completed"] == 3
    assert said is None or found["errors_said"] == {kind: said}


def test_a_server_that_takes_too_long_is_not_waited_for(fake: Fake) -> None:
    fake.first = lambda place: 3.0 if place == 0 else 0.0
    target = Target(fake.target.url, timeout_seconds=0.5)
    [found] = run_serve(Load(concurrency=1, requests=2, output_tokens=(2, 2)), Slo(), target, silent)["results"]
    assert found["errors"] == {"timeout": 1} and found["completed"] == 1


def test_a_load_that_the_server_always_refuses_is_no_measurement(fake: Fake) -> None:
    fake.fault = lambda _: "refuse"
    with pytest.raises(ConfigError, match=r"did not answer a request like those of the load.*429 queue_full: come back later"):
        fake.measure(Load(concurrency=1, requests=2))


@pytest.mark.parametrize(("options", "told"), [
    (["--model", "none"], "serves no model 'none'. It serves: fake, other"),
    (["--prompt-tokens", "900", "--output-tokens", "200"], "request has 1100 tokens, its answer included; 'fake' takes at most 1000"),
    (["--platform", "cpu"], "platform: of a server that is started for the run"),
], ids=["model", "length", "two servers"])
def test_what_the_server_cannot_do_is_told_before_the_load(
    fake: Fake, options: list[str], told: str, capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "serve", "--url", fake.target.url, "--concurrency", "1", *options]) == 1
    assert told in capsys.readouterr().err


# Against the real one

@pytest.fixture(scope="module")
def server(serving: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("uvicorn")
    with serving.Process(tmp_path_factory.mktemp("server"), INFERPLANE_API_KEY=serving.KEY) as process:
        yield process


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["bench", "serve", *arguments, *SMALL, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_load_on_a_running_server_is_a_full_record(server: Any, serving: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    record = measured(capsys, "--url", server.url, "--api-key", serving.KEY, "--concurrency", "4", "--requests", "12", "--seed", "3")
    assert set(record) == {"format", "kind", "date", "machine", "versions", "server", "load", "interrupted", "results"}
    assert record["kind"] == "serve" and record["server"]["model"] == "tiny" and not record["server"]["own"]
    assert serving.KEY not in json.dumps(record)
    [one] = record["results"]
    assert one["completed"] == 12 and one["errors"] == {} and one["unfinished"] == 0
    assert (one["prompt_tokens"], one["output_tokens"]) == (12 * 12, 12 * 6)
    for times in (one["ttft_ms"], one["itl_ms"], one["end_to_end_ms"]):
        assert 0 <= times["min"] <= times["p50"] <= times["p90"] <= times["p95"] <= times["p99"] <= times["max"]
    assert one["ttft_ms"]["p50"] < one["end_to_end_ms"]["p50"]


def test_chats_hit_the_prefix_cache_of_a_server(server: Any, serving: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("INFERPLANE_API_KEY", serving.KEY)
    before = server.figure("vllm:prefix_cache_hits_total")
    record = measured(capsys, "--url", server.url, "--rate", "20", "--requests", "12", "--turns", "3", "--shared-prefix", "64")
    assert record["results"][0]["completed"] == 12
    assert server.figure("vllm:prefix_cache_hits_total") - before >= 11 * 48


def test_a_wrong_key_is_told_with_its_remedy(server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--url", server.url, "--api-key", "wrong", "--concurrency", "1"]) == 1
    assert "refused the key (401). Give it with --api-key" in capsys.readouterr().err


def test_a_server_of_its_own_is_started_measured_and_ended(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    kept = tmp_path / "kept.json"
    assert main(["bench", "serve", "--shape", "tiny", *OWN, "--concurrency", "2", "--requests", "6", *SMALL, "--slo-ttft-ms", "60000",
                 "--json", str(kept)]) == 0
    told = capsys.readouterr().out
    record = json.loads(kept.read_text())
    assert record["server"]["own"] and record["results"][0]["server_cpu_seconds"] > 0
    assert "6 of 6 requests ended well" in told and "to the first token" in told and "100.0 % kept first token 60000 ms" in told


def test_a_server_that_cannot_start_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn")
    assert main(["bench", "serve", "--model", "/no/such/folder", *OWN, "--concurrency", "1"]) == 1
    said = capsys.readouterr().err
    assert "the server that was started for the run ended with code 1" in said and "/no/such/folder" in said


def test_an_interrupt_reports_what_was_measured_so_far(server: Any, serving: ModuleType, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    command = [sys.executable, "-m", "inferplane.cli", "bench", "serve", "--url", server.url, "--api-key", serving.KEY,
               "--concurrency", "2", "--duration", "60", "--output-tokens", "40", "--json", str(kept)]
    before = server.figure("vllm:request_success_total")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + serving.PATIENCE_SECONDS
    while server.figure("vllm:request_success_total") < before + 4:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    record = json.loads(kept.read_text())
    assert record["interrupted"] and "; interrupted" in told
    assert record["results"][0]["completed"] >= 3 and record["results"][0]["errors"] == {}


def test_a_short_soak_leaves_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    kept = tmp_path / "soak.json"
    serve_soak.main(["--seconds", "5", "--streams", "12", "--output", str(kept)])
    record = json.loads(kept.read_text())
    failed = {check["name"]: check["found"] for check in record["checks"] if not check["holds"]}
    untold_in_seconds = {"so many streams at once", "memory is flat"}
    """So short a run is over before each page of the KV pool was written once."""
    assert not failed.keys() - untold_in_seconds, failed
    assert len(record["checks"]) == 9 and record["vanished"] > 0


def test_a_soak_fails_for_memory_that_grows_blocks_that_stay_silence_and_errors() -> None:
    answered, vanished = trip(0.0, first=0.1, gap=0.1, tokens=3), 1
    flat = [(float(second), 100 << 20) for second in range(40)]
    sound = Soak(0.0, [answered], vanished, flat, [10.0])
    assert [check.name for check in checks(sound, {}, 100 << 20, 10) if not check.holds] == []
    growing = [(second, size + (int(second) * 5 << 20)) for second, size in flat]
    failing = Soak(0.0, [trip(0.0, first=99.0, gap=0.1, tokens=3), Trip(1.0, sent=1.0, ended=1.1, error="connection")], 0, growing, [3.0])
    assert not any(check.holds for check in checks(failing, {"inferplane:kv_blocks.held": 1.0}, 300 << 20, 10))


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_load_is_drawn(fake: Fake, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / f"load.{kind}"
    assert main(["bench", "serve", "--url", fake.target.url, "--concurrency", "2", "--requests", "4", *SMALL, "--slo-itl-ms", "5",
                 "--plot", str(picture), "--json", str(tmp_path / "kept.json")]) == 0
    assert picture.stat().st_size > 5_000


@pytest.mark.parametrize(("options", "told"), [
    (["--rate", "0"], "rate must be above 0; found 0"),
    (["--rate", "nan"], "rate must be above 0; found nan"),
    (["--concurrency", "0"], "concurrency must be at least 1; found 0"),
    (["--rate", "1", "--duration", "-1"], "duration must be above 0; found -1"),
    (["--rate", "1", "--requests", "0"], "requests must be at least 1; found 0"),
    (["--rate", "1", "--turns", "0"], "turns must be at least 1; found 0"),
    (["--rate", "1", "--prompt-tokens", "9-3"], "--prompt-tokens '9-3' is no number of tokens. Write one like 128, or a range like 64-256"),
    (["--rate", "1", "--output-tokens", "0"], "--output-tokens '0' is no number of tokens"),
    (["--rate", "1", "--think-seconds", "-1"], "think seconds must be at least 0; found -1"),
    (["--rate", "1", "--slo-ttft-ms", "0"], "--slo-ttft-ms must be above 0; found 0"),
    (["--rate", "1", "--timeout", "0"], "--timeout must be above 0 seconds; found 0"),
    (["--rate", "1", "--url", "127.0.0.1:8000"], "--url '127.0.0.1:8000' is no address of a server. Write it like http://127.0.0.1:8000"),
    (["--rate", "1", "--url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
    (["--rate", "1", "--api-key", "k"], "--api-key opens a server that runs already, and no --url names one"),
    (["--rate", "1", "--shape", "tiny", "--model", "m"], "both a model, 'm', and a shape, 'tiny', were given"),
    (["--rate", "1", "--plot", "load.jpeg"], "End its name in .svg or .png"),
    (["--rate", "1", "--json", "/no/such/folder/file.json"], "--json /no/such/folder/file.json cannot be written"),
], ids=lambda value: "-".join(value).strip("-") if isinstance(value, list) else "")
def test_bad_input_gives_one_clear_message(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *options]) == 1
    assert told in capsys.readouterr().err


def test_without_its_client_it_says_what_to_install(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("inferplane.bench.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    assert main(["bench", "serve", "--rate", "1"]) == 1
    assert "bench serve needs the package 'httpx2'. Install it: pip install 'inferplane[bench]'" in capsys.readouterr().err
