// Live figures: /metrics read every second, counters made into rates, histograms into means and percentiles.
import { Bars, Chart } from "./charts.js";

const KEPT_SECONDS = 120;
const RATE_SECONDS = 3;
const LATENCY_SECONDS = 10;
const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

const REASONS = { partial: "block not full", logits: "for its logits", diverged: "text differs" };

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const count = (value) => (value === null ? "–" : value < 10 ? fine.format(value) : whole.format(value));
const percent = (value) => (value === null ? "–" : `${fine.format(100 * value)} %`);
const seconds = (value) => (value === null ? "–" : value < 0.0095 ? `${(1e3 * value).toFixed(1)} ms`
  : value < 0.95 ? `${(1e3 * value).toFixed(0)} ms` : `${value.toFixed(1)} s`);

/** Prometheus' text format: name -> samples [{labels, value}]. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line[0] === "#" ? null : SAMPLE.exec(line);
    if (!match) continue;
    const labels = Object.fromEntries([...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, value]));
    const samples = found.get(match[1]) ?? found.set(match[1], []).get(match[1]);
    samples.push({ labels, value: Number(match[3]) });
  }
  return found;
}

/** One moment, in the words of the charts. */
function moment(found) {
  const all = (name) => found.get(name) ?? [];
  const sum = (name, label, wanted) => all(name).filter((one) => !label || one.labels[label] === wanted).reduce((total, one) => total + one.value, 0);
  const histogram = (name) => ({
    sum: sum(`${name}_sum`), count: sum(`${name}_count`),
    buckets: all(`${name}_bucket`).map((one) => [one.labels.le === "+Inf" ? Infinity : Number(one.labels.le), one.value]),
  });
  const blocks = (state) => sum("inferplane:kv_blocks", "state", state);
  return {
    time: performance.now() / 1e3,
    answers: sum("inferplane:engine_answers"), draining: sum("inferplane:draining"),
    written: sum("vllm:generation_tokens_total"), computed: sum("inferplane:step_tokens_total"),
    first: histogram("vllm:time_to_first_token_seconds"), between: histogram("vllm:inter_token_latency_seconds"),
    running: sum("vllm:num_requests_running"), waiting: sum("vllm:num_requests_waiting"),
    held: blocks("held"), cached: blocks("cached"), free: blocks("free"),
    asked: sum("vllm:prefix_cache_queries_total"), hit: sum("vllm:prefix_cache_hits_total"),
    steps: sum("inferplane:steps_total"), busy: sum("inferplane:busy_seconds_total"), host: sum("inferplane:host_seconds_total"),
    misses: Object.fromEntries(all("inferplane:kv_computed_blocks_total").map((one) => [REASONS[one.labels.reason] ?? one.labels.reason, one.value])),
  };
}

/** A quantile of what came between two moments, by Prometheus' rule: evenly spread within a bucket. Null: nothing came. */
export function quantile(from, to, part) {
  const before = new Map(from.buckets);
  let [low, under] = [0, 0];
  const total = to.count - from.count;
  if (total <= 0) return null;
  for (const [bound, cumulated] of to.buckets) {
    const upTo = cumulated - (before.get(bound) ?? 0);
    if (upTo >= part * total) return bound === Infinity ? low : low + (bound - low) * ((part * total - under) / (upTo - under || 1));
    [low, under] = [bound, upTo];
  }
  return null;
}

const mean = (from, to) => (to.count > from.count ? (to.sum - from.sum) / (to.count - from.count) : null);
const share = (part, of) => (of > 0 ? part / of : null);

const charts = document.getElementById("charts");
const chart = (name, title, series, format, more) => new Chart(charts, { name, title, series, format, length: KEPT_SECONDS, ...more });
const shown = [
  [chart("tokens", "Tokens per second", ["generated", "computed"], count, { least: 10 }), (now, past) =>
    ["written", "computed"].map((name) => (now[name] - past(RATE_SECONDS)[name]) / (now.time - past(RATE_SECONDS).time))],
  [chart("requests", "Sequences", ["running", "waiting"], count, { least: 2 }), (now) => [now.running, now.waiting]],
  [chart("first", "Time to first token", ["mean", "95 %"], seconds, { least: 0.001 }), (now, past) => latency(now, past, "first")],
  [chart("between", "Between two tokens", ["mean", "95 %"], seconds, { least: 0.001 }), (now, past) => latency(now, past, "between")],
  [chart("kv", "KV blocks", ["held", "cached"], percent, { most: 1 }), (now) => {
    const total = now.held + now.cached + now.free;
    return [share(now.held, total), share(now.cached, total)];
  }],
  [chart("prefix", "Prefix cache hits", ["last 10 s", "overall"], percent, { most: 1 }), (now, past) => {
    const before = past(LATENCY_SECONDS);
    return [share(now.hit - before.hit, now.asked - before.asked), share(now.hit, now.asked)];
  }],
  [chart("step", "Time of a step", ["step", "of it, host"], seconds, { least: 0.001 }), (now, past) => {
    const before = past(RATE_SECONDS);
    return ["busy", "host"].map((name) => share(now[name] - before[name], now.steps - before.steps));
  }],
];
const misses = new Bars(charts, { name: "misses", title: "Why prompt blocks were computed", note: "blocks since the start" });

function latency(now, past, name) {
  const before = past(LATENCY_SECONDS)[name];
  return [mean(before, now[name]), quantile(before, now[name], 0.95)];
}

const moments = [];
const state = document.getElementById("state");

function tell(kind, text) {
  if (state.textContent === text) return;
  state.dataset.state = kind;
  state.textContent = text;
}

async function poll() {
  let now;
  try {
    const response = await fetch("metrics", { cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error(response.status);
    now = moment(parse(await response.text()));
  } catch {
    moments.length = 0;
    tell("away", "server away");
    for (const [one] of shown) one.push(one.series.map(() => null));
    return;
  }
  if (now.steps < (moments.at(-1)?.steps ?? 0)) moments.length = 0;  // started anew: its counters began again
  moments.push(now);
  if (moments.length > KEPT_SECONDS) moments.shift();
  const past = (age) => moments.find((one) => one.time >= now.time - age - 0.5);
  for (const [one, figures] of shown) one.push(moments.length > 1 ? figures(now, past) : one.series.map(() => null));
  misses.show(now.misses, (value) => whole.format(value));
  if (now.draining) tell("away", "shutting down");
  else if (!now.answers) tell("away", "the engine is busy");
  else tell("live", "live");
}

async function run() {
  for (;;) {
    const began = performance.now();
    if (!document.hidden || !moments.length) await poll();
    await new Promise((go) => setTimeout(go, Math.max(100, 1000 - (performance.now() - began))));
  }
}

run();
