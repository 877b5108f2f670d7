// The playground: a conversation with the model through /v1/chat/completions, as any client would hold it.
import { ask, element, events } from "./server.js";
import { Answer, failed, said } from "./talk.js";

const EXAMPLE = [{ type: "function", function: {
  name: "get_weather", description: "The weather in a city.",
  parameters: { type: "object", required: ["city"], properties: { city: { type: "string" } } },
} }];
const IDEAS = ["Hello", "What is 47 + 38?", "Repeat this: blue fox 42", "Remember: amber = 7314. What is amber?"];
const WEATHER = "What is the weather in Paris?";

const at = (id) => document.getElementById(id);
const talk = at("talk");
const prompt = at("prompt");
let messages = [];
let running = null;
let pending = null;
let model = "Model";

function welcome() {
  const ideas = [...IDEAS, WEATHER].map((text) => {
    const button = element("button", { type: "button" }, text === WEATHER ? `${text} (with a tool)` : text);
    button.addEventListener("click", () => {
      if (text === WEATHER && !at("tools").value.trim()) fillExample();
      prompt.value = text;
      at("ask").requestSubmit();
    });
    return button;
  });
  talk.replaceChildren(element("div", { class: "start" }, element("h3", {}, "Try the model"),
    element("p", { class: "dim" }, "It is asked as any OpenAI client asks it, and nothing is kept."), element("div", { class: "ideas" }, ...ideas)));
}

function reset() {
  running?.abort();
  messages = [];
  pending = null;
  welcome();
  prompt.focus();
}

/** What the fields say, without those that are empty. */
function settings() {
  const found = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (!at(name).reportValidity()) throw new Error(`${name} is not valid`);
    if (at(name).value !== "") found[name] = Number(at(name).value);
  }
  const tools = readTools();
  return tools.length ? { ...found, tools, tool_choice: at("tool_choice").value } : found;
}

/** The tools field as a list. Throws where it is no JSON, and shows why. */
function readTools() {
  const text = at("tools").value.trim();
  at("tools-said").textContent = at("tools-count").textContent = "";
  if (!text) return [];
  try {
    const found = JSON.parse(text);
    const tools = Array.isArray(found) ? found : [found];
    at("tools-count").textContent = `${tools.length}`;
    return tools;
  } catch (error) {
    at("tools-fold").open = true;
    at("tools-said").textContent = `This is not JSON: ${error.message}`;
    throw error;
  }
}

function fillExample() {
  at("tools").value = JSON.stringify(EXAMPLE, null, 2);
  readTools();
}

function show(box) {
  const low = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
  if (box) talk.append(box);
  if (low || box) talk.scrollTop = talk.scrollHeight;
}

function busy(controller) {
  running = controller;
  at("stop").hidden = !controller;
  at("send").disabled = Boolean(controller);
  talk.setAttribute("aria-busy", String(Boolean(controller)));
}

/** One turn of the model. */
async function answer() {
  const controller = new AbortController();
  const mine = messages;
  const turn = new Answer(model);
  let body;
  try {
    const system = at("system").value.trim();
    const whole = system ? [{ role: "system", content: system }, ...mine] : mine;
    body = { messages: whole, stream: true, stream_options: { include_usage: true }, ...settings() };
  } catch (error) {
    show(failed(error.message, answer));
    return;
  }
  busy(controller);
  show(turn.box);
  try {
    for await (const chunk of events(await ask("v1/chat/completions", { body, signal: controller.signal }))) {
      turn.grow(chunk);
      show();
    }
    finish(turn, mine);
  } catch (error) {
    const stopped = controller.signal.aborted;
    turn.end(stopped);
    if (mine !== messages) return;
    if (stopped) mine.push(turn.message(false));
    else {
      turn.box.remove();
      show(failed(error.message, answer));
    }
  } finally {
    if (running === controller) busy(null);
    show();
  }
}

function finish(turn, mine) {
  turn.end();
  if (mine !== messages) return;
  mine.push(turn.message(turn.reason === "tool_calls"));
  if (turn.reason !== "tool_calls") return;
  pending = turn;
  turn.ask((answers) => {
    pending = null;
    mine.push(...answers);
    answer();
  });
}

function send(event) {
  event.preventDefault();
  const text = prompt.value.trim();
  if (!text || running) return;
  if (pending) {  // a conversation may not go on with a call that has no answer
    pending.leave();
    messages.pop();
    messages.push(pending.message(false));
    pending = null;
  }
  talk.querySelector(".start")?.remove();
  talk.querySelector(".failed")?.remove();
  messages.push({ role: "user", content: text });
  show(said("user", "You", text));
  prompt.value = "";
  answer();
}

at("ask").addEventListener("submit", send);
at("stop").addEventListener("click", () => running?.abort());
at("fresh").addEventListener("click", reset);
at("tools-example").addEventListener("click", fillExample);
at("tools").addEventListener("change", () => { try { readTools(); } catch { /* shown beside the field */ } });
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
document.addEventListener("about", (event) => { [model] = event.detail.models; });
new ResizeObserver(() => { talk.scrollTop = talk.scrollHeight; }).observe(talk);
welcome();
if (matchMedia("(hover: hover)").matches) prompt.focus();
