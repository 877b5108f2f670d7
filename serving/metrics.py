"""Prometheus metrics: vLLM's names, so that its dashboards and routers read them, and our own beside them."""
from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..core.async_engine import AsyncEngine
from ..core.engine import EngineStats
from .gate import Gate

STATS_SECONDS = 1.0
"""That a scrape waits for the engine, which answers between two steps. Then it is told the figures of the last one."""
FIRST = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
BETWEEN = (.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
WHOLE = (.1, .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
CHOICES = (1, 2, 5, 10, 20, 50, 100)
REFUSALS = ("queue_full", "rate_limit_exceeded", "too_many_sequences", "shutting_down")
"""Told from the start as 0, so that the first one is seen as a rise."""


class Metrics:
    """One registry for one server. Requests are observed as they go; the engine's own figures are read at each scrape."""

    def __init__(self, engine: AsyncEngine, gate: Gate, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._engine = engine
        self._figures = Figures(engine, gate, model_name)
        self._asking: asyncio.Task[EngineStats] | None = None

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, ["model_name"], registry=self.registry, buckets=buckets).labels(model_name)

        self.first_token = histogram("vllm:time_to_first_token_seconds", "From a request's arrival to its first token.", FIRST)
        self.between = histogram("vllm:inter_token_latency_seconds", "Between two tokens of a streamed answer.", BETWEEN)
        self.mean_between = histogram("vllm:request_time_per_output_token_seconds", "An answer's mean time per further token.", BETWEEN)
        self.whole = histogram("vllm:e2e_request_latency_seconds", "From a request's arrival to its end.", WHOLE)
        self.queued = histogram("vllm:request_queue_time_seconds", "From a request's arrival to its first step.", WHOLE)
        self.prefill = histogram("vllm:request_prefill_time_seconds", "From a request's first step to its first token.", WHOLE)
        self.decode = histogram("vllm:request_decode_time_seconds", "From a request's first token to its end.", WHOLE)
        self.inference = histogram("vllm:request_inference_time_seconds", "From a request's first step to its end.", WHOLE)
        self.longest = histogram("vllm:request_max_num_generation_tokens", "Tokens of a request's longest answer.", TOKENS)
        self.prompt_sizes = histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self.answer_sizes = histogram("vllm:request_generation_tokens", "Tokens of an answer.", TOKENS)
        self.choices = histogram("vllm:request_params_n", "Answers that a request asks for.", CHOICES)
        self.limits = histogram("vllm:request_params_max_tokens", "The most tokens that a request asks for.", TOKENS)
        self.prompt_tokens = Counter(
            "vllm:prompt_tokens", "Tokens of prompts that were answered.", ["model_name"], registry=self.registry).labels(model_name)
        ended = Counter("vllm:request_success", "Answers that ended, by their reason.", ["model_name", "finished_reason"],
                        registry=self.registry)
        self.ended = {reason: ended.labels(model_name, reason) for reason in ("stop", "length", "abort")}
        self.registry.register(self._figures)
        self.registry.register(Renamed(self.between, "vllm:time_per_output_token_seconds", model_name))
        ProcessCollector(registry=self.registry)

    async def scrape(self) -> bytes:
        """The text format. An engine in the middle of a long step, or closed, does not hold it up."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(self._engine.engine.stats, 10 * STATS_SECONDS))
            self._asking.add_done_callback(lambda done: done.exception())
        await asyncio.wait((self._asking,), timeout=STATS_SECONDS)
        self._figures.answers = self._asking.done() and not self._asking.exception()
        if self._figures.answers:
            self._figures.stats = self._asking.result()
        return generate_latest(self.registry)


class Renamed(Collector):
    """A histogram once more, by its older name."""

    def __init__(self, histogram: Histogram, name: str, model_name: str) -> None:
        self._histogram, self._name, self._model = histogram, name, model_name

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        for family in self._histogram.collect():
            renamed = Metric(self._name, family.documentation, family.type)
            for sample in family.samples:
                name = sample.name.replace(family.name, self._name, 1)
                renamed.add_sample(name, {**sample.labels, "model_name": self._model}, sample.value)
            yield renamed


class Figures(Collector):
    """What the engine counts, from its last answer."""

    def __init__(self, engine: AsyncEngine, gate: Gate, model_name: str) -> None:
        self.stats: EngineStats | None = None
        self.answers = True
        self._engine, self._gate, self._model = engine, gate, model_name

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        yield self._gauge("inferplane:engine_answers", "1 if the engine answered this scrape in time.", float(self.answers))
        yield self._gauge("inferplane:requests_inside", "HTTP requests that are being answered.", len(self._gate))
        yield self._gauge("inferplane:draining", "1 once the server takes no more requests.", float(self._gate.closed is not None))
        refusals = CounterMetricFamily("inferplane:refusals", "Requests that the gate refused.", labels=["model_name", "code"])
        for code, count in {**dict.fromkeys(REFUSALS, 0), **self._gate.refusals}.items():
            refusals.add_metric([self._model, code], count)
        yield refusals
        yield self._cache_config()
        if self.stats is not None:
            yield from self._of(self.stats)

    def _of(self, stats: EngineStats) -> Iterable[Metric]:
        kv = stats.kv
        held, total = sum(kv.held_blocks), sum(kv.held_blocks) + sum(kv.cached_blocks) + sum(kv.free_blocks)
        used = held / total if total else 0.0
        yield self._gauge("vllm:num_requests_running", "Sequences that are computed now.", stats.running)
        yield self._gauge("vllm:num_requests_waiting", "Sequences that wait for their turn.", stats.waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of the KV blocks that running sequences hold; 1 is all.", used)
        yield self._gauge("vllm:gpu_cache_usage_perc", "The same, by its older name.", used)
        yield self._counter("vllm:generation_tokens", "Tokens that requests received.", stats.drawn_tokens)
        yield self._counter("vllm:num_preemptions", "Sequences that lost their blocks and were computed again.", stats.preemptions)
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", kv.prompt_tokens)
        yield self._counter("vllm:prefix_cache_hits", "Those of them that were found.", kv.hit_tokens)
        yield self._counter("inferplane:steps", "Steps computed.", stats.steps)
        yield self._counter("inferplane:step_tokens", "Tokens computed, of prompts and of answers.", stats.step_tokens)
        yield self._counter("inferplane:host_seconds", "Time spent planning, packing and handing out.", stats.host_seconds)
        yield self._counter("inferplane:busy_seconds", "Time with steps to compute; over the steps, the mean of one.", stats.busy_seconds)
        yield self._counter("inferplane:kv_evicted_blocks", "Cached blocks given up for others.", kv.evicted_blocks)
        blocks = GaugeMetricFamily("inferplane:kv_blocks", "KV blocks by group and state.", labels=["model_name", "group", "state"])
        for state, counts in (("free", kv.free_blocks), ("cached", kv.cached_blocks), ("held", kv.held_blocks)):
            for group, count in enumerate(counts):
                blocks.add_metric([self._model, str(group), state], count)
        yield blocks
        computed = CounterMetricFamily("inferplane:kv_computed_blocks", "Blocks of prompts that had to be computed, by the reason.",
                                       labels=["model_name", "reason"])
        for reason, count in kv.computed_blocks.items():
            computed.add_metric([self._model, reason.value], count)
        yield computed

    def _cache_config(self) -> Metric:
        """Routers read from it how many blocks there are, and of how many tokens."""
        started = self._engine.started
        known = {**asdict(self._engine.config.cache), "block_size": started.loaded.states[0].block_tokens,
                 "num_gpu_blocks": max(started.layout.blocks) - 1}
        labels = {"model_name": self._model, **{name: str(value) for name, value in known.items()}}
        family = GaugeMetricFamily("vllm:cache_config_info", "The cache's settings.", labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family
