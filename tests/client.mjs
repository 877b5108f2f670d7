// A chat by OpenAI's own Node client, streamed, with a tool call: node client.mjs BASE_URL; prints one JSON object.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const ask = (content, more) =>
  client.chat.completions.create({ model: "tiny", temperature: 0, messages: [{ role: "user", content }], stream: true, ...more });

let text = "";
for await (const chunk of await ask("Repeat this: blue fox 42", {})) text += chunk.choices[0]?.delta?.content ?? "";

let chunks = 0; // of an answer so long that a client which is slow for a while still gets it in pieces
for await (const chunk of await ask("Once", { max_tokens: 1000, ignore_eos: true })) chunks += chunk.choices.length;

const parameters = { type: "object", required: ["city"], properties: { city: { type: "string" } } };
const tools = [{ type: "function", function: { name: "get_weather", description: "The weather.", parameters } }];
let called = "";
let name = null;
for await (const chunk of await ask("What is the weather in Paris?", { tools })) {
  for (const call of chunk.choices[0]?.delta?.tool_calls ?? []) {
    name ??= call.function.name;
    called += call.function.arguments;
  }
}

const response = await client.responses.create({ model: "tiny", temperature: 0, input: "Repeat this: blue fox 42" });
console.log(JSON.stringify({ text, chunks, name, arguments: JSON.parse(called), response: response.output_text }));
