// Talks to the gateway with the Node client and prints what it saw as one JSON object.
// usage: BASE_URL=... API_KEY=... node client.mjs DIRECTORY_WITH_NODE_MODULES
import { createRequire } from "node:module";
import { resolve } from "node:path";

const require = createRequire(resolve(process.argv[2], "package.json"));
const { OpenAI } = require("openai");

const options = { baseURL: process.env.BASE_URL, maxRetries: 0, timeout: 30_000 };
const client = new OpenAI({ ...options, apiKey: process.env.API_KEY });
const request = { model: "tiny", messages: [{ role: "user", content: "say a few words" }], max_tokens: 8 };

const chat = await client.chat.completions.create(request);

let text = "";
let usage = null;
const chunks = await client.chat.completions.create({
  ...request,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of chunks) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

const embeddings = await client.embeddings.create({ model: "tiny", input: "water under the line" });

const models = [];
for await (const model of client.models.list()) {
  models.push(model.id);
}

const stranger = new OpenAI({ ...options, apiKey: "hk-wrong" });
const wrongKey = await stranger.chat.completions.create(request).then(
  () => 200,
  (error) => error.status,
);

console.log(
  JSON.stringify({
    chat: chat.usage,
    stream: { text, usage },
    embedding: embeddings.data[0].embedding.length,
    models,
    wrong_key: wrongKey,
  }),
);
