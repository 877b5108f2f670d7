"""The console: a page that fetches nothing from elsewhere, in a real browser, and a dashboard whose figures are really there."""
from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from inferplane import AsyncEngine

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
import inferplane.serving.routes.console as console
from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(console.FOLDER).parent / "dashboard.json"
PROMETHEUS = shutil.which("prometheus")
WIDTHS = {"desktop": 1200, "phone": 390}
NAME = re.compile(r"\b(?:vllm|inferplane|process)[:_][\w:]+")


@pytest.fixture(scope="module")
def process(serving: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serving.Process(tmp_path_factory.mktemp("console")) as made:
        yield made


@pytest.fixture(scope="module")
def chromium(browsing: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browsing.Browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture
def page(chromium: Any, process: Any) -> Any:
    """The console, opened anew."""
    opened(chromium, f"{process.url}/")
    return chromium


def opened(chromium: Any, url: str) -> None:
    chromium.seen.clear()
    chromium.look(1200, 900, dark=False)
    chromium.send("Page.navigate", url=url)
    chromium.until("document.getElementById('state')?.dataset.state === 'live'")


def say(page: Any, text: str) -> None:
    page.run("document.getElementById('prompt').focus()")
    page.type(text)
    page.press("Enter")


ANSWERED = "[...document.querySelectorAll('.turn.assistant:not(.busy)')].map(one => one.querySelector('.text').textContent)"


# What is served


def test_files_come_without_a_key_under_a_strict_policy(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine, api_keys=("secret",))
    app.headers = {}
    for path in console.PAGE:
        answer = app.ask("GET", path)
        assert answer.status_code == 200 and answer.content
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'" and policy["require-trusted-types-for"] == "'script'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"].startswith(console.TYPES[Path(console.PAGE[path]).suffix])


def test_every_file_of_the_folder_is_served_and_shipped() -> None:
    assert {path.name for path in console.FOLDER.iterdir()} == set(console.PAGE.values())


def test_platform_and_kernels_need_the_key(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine, api_keys=("secret",))
    about = app.ask("GET", "/console/about").json()
    assert about["platform"] == "cpu" and about["models"] == ["tiny"]
    resolution = engine.started.loaded.resolution
    assert [row["kernel"] for row in about["kernels"]] == [choice.name for choice in resolution]
    app.headers = {}
    serving.assert_error(app.ask("GET", "/console/about"), 401, "invalid_api_key")


def test_files_name_no_other_host_and_make_no_markup_of_text() -> None:
    for name in console.PAGE.values():
        text = (console.FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|[\"'(]//|@import|url\(", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text), name
        assert not re.search(r"localStorage|sessionStorage|cookie", text), name
        assert not re.search(r"\son\w+=|\sstyle=", text), name


# In a browser


def test_a_chat_is_sent_with_enter_and_streamed(page: Any, process: Any) -> None:
    page.run("window.grown = new Set(); new MutationObserver(() => grown.add(document.querySelector('.assistant .text')?.textContent))"
             ".observe(document.getElementById('talk'), {subtree: true, childList: true}), 0")
    say(page, "Repeat this: blue fox 42")
    page.until(f"{ANSWERED}.length === 1")
    assert page.run(ANSWERED) == ["blue fox 42"]
    pieces = page.run("[...grown].filter(Boolean)")
    assert len(pieces) > 2 and all("blue fox 42".startswith(piece) for piece in pieces)
    assert re.match(r"\d+ tokens · first after \d+ ms", page.until("document.querySelector('.figures').textContent"))
    say(page, "What is 47 + 38?")
    page.until(f"{ANSWERED}.length === 2")
    assert page.run("document.querySelectorAll('.turn.user').length") == 2
    assert page.complaints() == []
    assert {url for url in page.fetched() if not url.startswith(f"{process.url}/")} <= {"about:blank"}


def test_a_call_is_shown_and_answered_as_the_tool(page: Any) -> None:
    page.run("document.getElementById('tools-example').click()")
    say(page, "What is the weather in Paris?")
    page.until("document.activeElement?.matches('.reply textarea')")
    assert page.run("document.querySelector('.call .name').textContent") == "get_weather"
    assert json.loads(page.run("document.querySelector('.call pre').textContent")) == {"city": "Paris"}
    page.type('{"sky": "sunny"}')
    page.press("Enter")
    page.until(f"{ANSWERED}.length === 2")
    sent = [json.loads(one["params"]["request"]["postData"]) for one in page.seen
            if one.get("method") == "Network.requestWillBeSent" and "postData" in one["params"]["request"]]
    user, called, told = sent[-1]["messages"]
    assert (user["role"], called["role"], told["role"]) == ("user", "assistant", "tool")
    assert told["tool_call_id"] == called["tool_calls"][0]["id"] and told["content"] == '{"sky": "sunny"}'


def test_what_the_model_writes_is_text_and_its_thoughts_are_folded(page: Any) -> None:
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""}, {"reasoning_content": "Is it <i>safe</i>?"}, {"content": "<img src=x on"},
        {"content": "error=alert(1)>"},
        {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "<b>clock</b>", "arguments": ""}}]},
        *({"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ('{"zone": ', '"<u>UTC</u>"}')),
    ]
    seen = page.run(f"""import('/console/talk.js').then(({{ Answer }}) => {{
      const turn = new Answer('tiny'), seen = [];
      document.getElementById('talk').append(turn.box);
      for (const delta of {json.dumps(deltas)}) {{
        turn.grow({{ choices: [{{ delta, finish_reason: null }}] }});
        seen.push(turn.box.querySelector('.call pre')?.textContent);
      }}
      turn.end();
      return [seen, turn.words, turn.box.querySelector('.text').textContent, turn.box.querySelector('.call .name').textContent,
        turn.box.querySelector('.thoughts div').textContent, turn.box.querySelector('.thoughts').open,
        turn.box.querySelectorAll('img, i, b, u').length];
    }})""")
    calls, words, text, name, thoughts, opened, elements = seen
    assert calls[-3:] == ["", '{"zone": ', '{"zone": "<u>UTC</u>"}']
    assert words == text == "<img src=x onerror=alert(1)>" and name == "<b>clock</b>"
    assert (thoughts, opened, elements) == ("Is it <i>safe</i>?", False, 0)


def test_percentiles_follow_prometheus_rule(page: Any) -> None:
    found = page.run("""import('/console/live.js').then(({ quantile }) => {
      const before = {count: 5, buckets: [[1, 5], [2, 5], [Infinity, 5]]};
      const after = (...counts) => ({count: counts.at(-1), buckets: [[1, counts[0]], [2, counts[1]], [Infinity, counts[2]]]});
      return [quantile(before, after(5, 15, 15), 0.5), quantile(before, after(15, 15, 15), 0.9), quantile(before, after(5, 6, 15), 0.95),
        quantile(before, before, 0.5)];
    })""")
    assert found == [1.5, 0.9, 2, None]


def test_escape_stops_an_answer_and_its_request(page: Any, process: Any) -> None:
    page.run("const f = window.fetch; window.fetch = (path, options) => f(path, options?.body ? "
             "{...options, body: JSON.stringify({...JSON.parse(options.body), ignore_eos: true})} : options), 0")
    say(page, "Hello")
    page.until("(document.querySelector('.busy .text')?.textContent.length ?? 0) > 20")
    page.press("Escape")
    page.until("document.querySelector('.figures').textContent.includes('stopped')")
    process.becomes("vllm:num_requests_running", 0)
    assert page.run("document.getElementById('stop').hidden && !document.getElementById('send').disabled")


def test_settings_are_sent_and_a_refusal_can_be_tried_again(page: Any) -> None:
    page.run("for (const [name, value] of [['max_tokens', 3], ['temperature', 0], ['seed', 7], ['system', 'Be brief.']]) "
             "document.getElementById(name).value = value; 0")
    page.run("document.getElementById('tools').value = '[{\"type\": \"other\"}]', 0")
    say(page, "Hello")
    page.until("document.querySelector('.turn.failed') !== null")
    assert "tools" in page.run("document.querySelector('.turn.failed .text').textContent")
    page.run("document.getElementById('tools').value = '', document.querySelector('.turn.failed button').click()")
    page.until(f"{ANSWERED}.length === 1")
    sent = json.loads([one["params"]["request"]["postData"] for one in page.seen
                       if one.get("method") == "Network.requestWillBeSent" and "postData" in one["params"]["request"]][-1])
    assert (sent["max_tokens"], sent["temperature"], sent["seed"]) == (3, 0, 7) and "tools" not in sent
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]


def test_charts_move(page: Any) -> None:
    def points() -> int:
        return int(page.run("document.querySelector('[data-chart=tokens] .stroke').getAttribute('d').split('L').length"))

    say(page, "Hello")
    page.until("parseFloat(document.querySelector('[data-chart=tokens] .value b').textContent) > 0")
    before = points()
    page.until("document.querySelector('[data-chart=first] .value b').textContent.endsWith(' ms')")
    page.until(f"document.querySelector('[data-chart=tokens] .stroke').getAttribute('d').split('L').length > {before}")
    assert page.run("document.querySelectorAll('[data-chart=misses] li').length") == 6
    assert page.run("document.querySelectorAll('.op .took b').length") > 10


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_nothing_overflows(width: int, dark: bool, page: Any) -> None:
    say(page, f"Repeat this: {'long' * 60}")
    page.until(f"{ANSWERED}.length === 1 && document.querySelector('.op') !== null")
    page.look(width, 844, dark)
    page.run("for (const one of document.querySelectorAll('details')) one.open = true; 0")
    assert page.run("document.documentElement.scrollWidth") == width
    outside = ("[...document.querySelectorAll('main *')].filter(one => one.getBoundingClientRect().right > innerWidth + 1)"
               ".map(one => one.outerHTML)")
    assert page.run(outside) == []
    channels = [int(part) for part in re.findall(r"\d+", page.run("getComputedStyle(document.body).backgroundColor"))[:3]]
    assert (max(channels) < 64) == dark


def test_every_field_and_button_has_a_name(page: Any) -> None:
    nameless = ("[...document.querySelectorAll('input, textarea, select, button')].filter(one => "
                "!(one.labels?.length || one.textContent.trim())).map(one => one.outerHTML)")
    assert page.run(nameless) == []


def test_a_key_is_asked_for_and_kept_in_memory_only(chromium: Any, serving: ModuleType, tmp_path: Path) -> None:
    with serving.Process(tmp_path, "--api-key", serving.KEY) as locked:
        opened(chromium, f"{locked.url}/")
        chromium.until("document.activeElement?.id === 'key'")
        chromium.type(serving.KEY)
        chromium.press("Enter")
        chromium.until("document.getElementById('served').textContent === 'tiny on cpu'")
        assert chromium.run("document.getElementById('lock').hidden && document.getElementById('key').value === ''")
        say(chromium, "Repeat this: blue fox 42")
        chromium.until(f"{ANSWERED}[0] === 'blue fox 42'")
        assert chromium.run("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert serving.KEY not in locked.said()


# The dashboard


def queries() -> list[str]:
    return [target["expr"] for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"] for target in panel.get("targets", ())]


def test_each_name_of_the_dashboard_is_a_metric_of_the_server(serving: ModuleType, engine: AsyncEngine) -> None:
    app = serving.App(engine)
    app.post("/v1/chat/completions", serving.CHAT)
    told = {sample.name for family in text_string_to_metric_families(app.ask("GET", "/metrics").text) for sample in family.samples}
    asked = {name for query in queries() for name in NAME.findall(query)}
    assert len(asked) > 25
    assert asked <= told


def test_the_dashboard_has_every_panel_once() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="needs prometheus")
def test_prometheus_finds_a_number_for_each_query(process: Any, serving: ModuleType, tmp_path: Path) -> None:
    http = serving.httpx2
    with Prometheus(tmp_path, process.url.removeprefix("http://")) as prometheus:
        end = time.monotonic() + 60
        while missing := [query for query in queries() if not prometheus.answers(http, query)]:
            assert time.monotonic() < end, missing
            answer = http.post(f"{process.url}/v1/chat/completions", json={**serving.CHAT, "stream": True}, timeout=60)
            assert answer.status_code == 200
            time.sleep(0.2)


class Prometheus:
    """Scrapes one server every second."""

    def __init__(self, folder: Path, target: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        jobs = [{"job_name": "inferplane", "static_configs": [{"targets": [target]}]}]
        settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(json.dumps(settings))  # JSON is YAML
        command = [str(PROMETHEUS), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
                   f"--web.listen-address={self.address}"]
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def __enter__(self) -> Prometheus:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(30)

    def answers(self, http: Any, query: str) -> bool:
        """Whether each series that it finds is a number, and there is one."""
        asked = query.replace("$__rate_interval", "20s").replace("$model_name", ".*").replace("$job", ".*")
        try:
            answer = http.get(f"http://{self.address}/api/v1/query", params={"query": asked})
        except http.TransportError:
            return False
        if answer.status_code == 503:  # it is still starting
            return False
        found = answer.json()
        assert found["status"] == "success", (query, found)
        values = [float(one["value"][1]) for one in found["data"]["result"]]
        return bool(values) and all(value == value for value in values)
