// Platform and kernels: what the server is made of, and which kernel serves each op, from /console/about.
import { ask, element } from "./server.js";

const number = new Intl.NumberFormat("en");

async function show() {
  let about;
  try {
    about = await (await ask("console/about")).json();
  } catch (refusal) {
    if (refusal.status !== 401) document.getElementById("kernels-said").textContent = `${refusal.message}`;
    return;
  }
  const [name] = about.models;
  document.title = `${name} · Inferplane`;
  document.getElementById("served").replaceChildren(element("b", {}, name), ` on ${about.platform}`);
  document.dispatchEvent(new CustomEvent("about", { detail: about }));
  const facts = {
    Model: about.models.join(", "), Family: about.family, "Data type": about.dtype, Platform: about.platform,
    Context: `${number.format(about.max_model_len)} tokens`,
    "KV cache": `${number.format(about.kv.tokens)} tokens`,
    "KV memory": `${number.format(Math.round(about.kv.bytes / 1e6))} MB`,
    Blocks: `of ${about.kv.block_tokens} tokens`,
    "Prefix cache": about.kv.prefix_cache ? "on" : "off",
    "At once": `${about.running} sequences`,
    Queue: number.format(about.queue), "Tool calls": about.tool_format ?? "not known", Version: about.version,
  };
  document.getElementById("facts").replaceChildren(...Object.entries(facts).map(([title, text]) =>
    element("div", {}, element("dt", {}, title), element("dd", {}, text))));
  showKernels(about.kernels);
}

function showKernels(rows) {
  const ops = Map.groupBy ? Map.groupBy(rows, (row) => row.op) : grouped(rows);
  const kernels = new Set(rows.map((row) => row.kernel));
  document.getElementById("kernels-said").textContent =
    `${ops.size} ops in ${rows.length} forms are served by ${kernels.size} kernels. Calls are those of one step.`;
  document.getElementById("kernels").replaceChildren(...[...ops].map(([op, choices]) => {
    const calls = choices.reduce((sum, one) => sum + one.calls, 0);
    return element("article", { class: "op" },
      element("h3", {}, op, element("span", {}, `${calls} ${calls === 1 ? "call" : "calls"}`)), ...choices.map(choice));
  }));
}

function grouped(rows) {
  const found = new Map();
  for (const row of rows) found.set(row.op, [...(found.get(row.op) ?? []), row]);
  return found;
}

function choice(row) {
  const calls = `× ${row.calls}${row.devices ? `, ${row.devices}` : ""}`;
  const made = element("div", { class: "choice" },
    element("p", { class: "took" }, element("b", {}, row.kernel), element("span", { class: "dim" }, calls)),
    element("p", { class: "spec code" }, row.spec));
  const passed = Object.entries(row.passed);
  if (passed.length) {
    made.append(element("details", {}, element("summary", {}, `${passed.length} passed over`),
      element("ul", {}, ...passed.map(([kernel, why]) => element("li", {}, element("b", {}, kernel), `: ${why}`)))));
  }
  return made;
}

document.addEventListener("unlocked", show);
show();
