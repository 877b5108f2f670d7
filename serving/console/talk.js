// One turn on the screen: words, thoughts, calls and their answers. What the model wrote is text here, never markup.
import { element } from "./server.js";

const FEW_TOKENS = 8;  // of fewer the pace says nothing

/** A turn that is complete: a person's, or a tool's. */
export function said(kind, who, text) {
  return element("article", { class: `turn ${kind}` }, element("p", { class: "who" }, who), element("div", { class: "text" }, text));
}

/** An error, with a button for another attempt. */
export function failed(message, again) {
  const made = said("failed", "Error", message);
  made.setAttribute("role", "alert");
  const button = element("button", { type: "button" }, "Try again");
  button.addEventListener("click", () => { made.remove(); again(); });
  made.append(button);
  return made;
}

/** An answer that grows as its deltas come. */
export class Answer {
  constructor(who) {
    this.text = element("div", { class: "text" });
    this.calls = [];
    this.words = "";
    this.figures = element("p", { class: "figures" });
    this.box = element("article", { class: "turn assistant busy" }, element("p", { class: "who" }, who), this.text, this.figures);
    this.began = performance.now();
    this.first = null;
  }

  /** One chunk of the stream. */
  grow(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const [choice] = chunk.choices;
    if (!choice) return;
    const { content, reasoning_content: thought, tool_calls: calls } = choice.delta;
    if (this.first === null && (content || thought || calls)) this.first = performance.now();
    if (thought) this.think(thought);
    if (content) {
      this.words += content;
      this.text.append(content);
    }
    for (const call of calls ?? []) this.call(call);
    this.reason = choice.finish_reason ?? this.reason;
  }

  think(text) {
    if (!this.thoughts) {
      this.thoughts = element("div");
      this.text.before(element("details", { class: "thoughts" }, element("summary", {}, "Thoughts"), this.thoughts));
    }
    this.thoughts.append(text);
  }

  call(delta) {
    let call = this.calls[delta.index];
    if (!call) {
      call = { id: delta.id, name: delta.function.name, arguments: "", code: element("pre") };
      call.box = element("div", { class: "call" }, element("p", { class: "name" }, call.name), call.code);
      this.calls[delta.index] = call;
      this.figures.before(call.box);
    }
    call.arguments += delta.function.arguments ?? "";
    call.code.textContent = call.arguments;
  }

  /** The stream ended. stopped: by the person. */
  end(stopped = false) {
    const now = performance.now();
    this.box.classList.remove("busy");
    const told = [];
    const tokens = this.usage?.completion_tokens;
    if (tokens !== undefined) told.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
    if (this.first !== null) told.push(`first after ${Math.round(this.first - this.began)} ms`);
    if (tokens >= FEW_TOKENS && now > this.first) told.push(`${Math.round((1e3 * (tokens - 1)) / (now - this.first))} tokens/s`);
    if (this.usage?.prompt_tokens_details?.cached_tokens) told.push(`${this.usage.prompt_tokens_details.cached_tokens} of the prompt cached`);
    if (stopped) told.push("stopped");
    if (this.reason === "length") told.push("cut off by the limit of tokens");
    this.figures.textContent = told.join(" · ");
  }

  /** As a message of the conversation. whole: calls are complete, and belong to it. */
  message(whole) {
    const calls = whole ? this.calls : [];
    return {
      role: "assistant", content: this.words || (calls.length ? null : ""),
      ...(calls.length ? { tool_calls: calls.map(({ id, name, arguments: given }) => ({ id, type: "function", function: { name, arguments: given } })) } : {}),
    };
  }

  /** A box at each call to answer as the tool; done(answers) once all have one. */
  ask(done) {
    const answers = new Map();
    for (const call of this.calls) {
      const field = element("textarea", { rows: 2, spellcheck: "false" });
      const button = element("button", { type: "submit" }, "Answer");
      const form = element("form", { class: "reply" }, element("label", {}, `Answer as ${call.name}`, field), button);
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        answers.set(call.id, field.value);
        form.replaceWith(element("pre", { class: "answered" }, `→ ${field.value}`));
        if (answers.size === this.calls.length) done(this.calls.map(({ id }) => ({ role: "tool", tool_call_id: id, content: answers.get(id) })));
        else this.box.querySelector(".reply textarea").focus();
      });
      field.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          form.requestSubmit();
        }
      });
      call.box.append(form);
    }
    this.box.querySelector(".reply textarea").focus({ preventScroll: true });
  }

  /** Nobody will answer the calls any more. */
  leave() {
    for (const form of this.box.querySelectorAll(".reply")) form.remove();
  }
}
