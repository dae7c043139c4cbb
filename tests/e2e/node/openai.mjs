// Tools and the Responses API with the OpenAI client for Node; prints what it saw as one JSON object.
import { baseURL, key, load, prompt, refusals, room, schema } from "./shared.mjs";

const { OpenAI } = load("openai");
const made = (apiKey) => new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 30_000 });
const client = made(key);
const weather = { name: "weather", description: "The weather in a city", parameters: schema };

const chat = await client.chat.completions
  .stream({
    model: "tools",
    messages: [{ role: "user", content: prompt }],
    max_tokens: room,
    tools: [{ type: "function", function: weather }],
    tool_choice: "required",
  })
  .finalChatCompletion();

const { data: answer, response } = await client.responses
  .create({ model: "tiny", input: prompt, max_output_tokens: 16 })
  .withResponse();

const kinds = [];
let text = "";
let final = null;
for await (const event of await client.responses.create({
  model: "tiny",
  input: prompt,
  max_output_tokens: 16,
  stream: true,
})) {
  kinds.push(event.type);
  text += event.type === "response.output_text.delta" ? event.delta : "";
  final = event.response ?? final;
}

const called = await client.responses
  .stream({
    model: "tools",
    input: prompt,
    max_output_tokens: room,
    tools: [{ type: "function", ...weather }],
    tool_choice: "required",
  })
  .finalResponse();

console.log(
  JSON.stringify({
    chat_tools: chat.choices[0].message.tool_calls.map((call) => JSON.parse(call.function.arguments)),
    chat_finish: chat.choices[0].finish_reason,
    text: answer.output_text,
    usage: answer.usage,
    request: response.headers.get("x-hoosh-request"),
    stream: { kinds, text, usage: final.usage, status: final.status },
    tools: called.output.map((item) => JSON.parse(item.arguments)),
    status: called.status,
    refusals: await refusals((given, model) => made(given).responses.create({ model, input: prompt })),
  }),
);
