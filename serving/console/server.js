// What the page says to the server: requests with the key, and server-sent events. The key is kept here, in memory, and nowhere else.

let key = "";
const lock = document.getElementById("lock");
const said = document.getElementById("lock-said");
const field = document.getElementById("key");

/** What the server answered instead of what was asked for. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** A response that is fine. Throws a Refusal; shows the key's field where a key is wanted. */
export async function ask(path, { body, signal } = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, cache: "no-store", credentials: "omit" };
  if (body) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["content-type"] = "application/json";
  }
  const response = await fetch(path, options);
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? `the server answered ${response.status}`;
  if (response.status === 401) {
    said.textContent = key ? "This key does not open it." : "";
    lock.hidden = false;
    field.focus();
  }
  const later = response.headers.get("retry-after");
  throw new Refusal(response.status, later ? `${message} (in ${later} s)` : message);
}

/** The data of each event, as it comes, until "[DONE]". Throws a Refusal for an error that comes in the middle. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const found = JSON.parse(data);
      if (found.error) throw new Refusal(0, found.error.message);
      yield found;
    }
  }
}

/** An element with attributes and children. Strings become text, never markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

lock.addEventListener("submit", (event) => {
  event.preventDefault();
  key = field.value.trim();
  field.value = "";
  lock.hidden = true;
  document.dispatchEvent(new Event("unlocked"));
});
