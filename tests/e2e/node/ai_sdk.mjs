// Text, streams, tools and objects with Vercel's AI SDK and three of its providers; prints what it saw, by provider.
import { baseURL, key, load, prompt, refusals, room, schema } from "./shared.mjs";

const { Output, generateText, jsonSchema, streamText, tool } = load("ai");
const { createAnthropic } = load("@ai-sdk/anthropic");
const { createOpenAI } = load("@ai-sdk/openai");
const { createOpenAICompatible } = load("@ai-sdk/openai-compatible");

const PROVIDERS = {
  openai: (apiKey, model) => createOpenAI({ baseURL, apiKey })(model), // the Responses API
  openai_chat: (apiKey, model) => createOpenAI({ baseURL, apiKey }).chat(model),
  anthropic: (apiKey, model) => createAnthropic({ baseURL, apiKey })(model),
  compatible: (apiKey, model) =>
    createOpenAICompatible({
      name: "hoosh",
      baseURL,
      apiKey,
      includeUsage: true,
      supportsStructuredOutputs: true,
    })(model),
};
const tools = { weather: tool({ description: "The weather in a city", inputSchema: jsonSchema(schema) }) };

async function look(provider) {
  const asked = (model, maxOutputTokens) => ({ model: provider(key, model), prompt, maxOutputTokens, maxRetries: 0 });
  const answer = await generateText(asked("tiny", 16));
  const streaming = streamText(asked("tiny", 16));
  const parts = [];
  for await (const part of streaming.fullStream) {
    parts.push(part.type);
  }
  const wanted = { ...asked("tools", room), tools, toolChoice: "required" };
  const called = await generateText(wanted);
  const structured = await generateText({
    ...asked("tiny", room),
    output: Output.object({ schema: jsonSchema(schema) }),
    // By default it forces a tool on models it does not know, and this model does not always use what it is given.
    providerOptions: { anthropic: { structuredOutputMode: "outputFormat" } },
  });
  return {
    text: answer.text,
    usage: answer.usage,
    request: answer.response.headers["x-hoosh-request"],
    warnings: answer.warnings,
    stream: { parts, text: await streaming.text, usage: await streaming.usage, finish: await streaming.finishReason },
    tools: called.toolCalls.map((call) => call.input),
    finish: called.finishReason,
    streamed_tools: (await streamText(wanted).toolCalls).map((call) => call.input),
    object: structured.output,
    refusals: await refusals((given, model) => generateText({ ...asked("tiny", 8), model: provider(given, model) })),
  };
}

const seen = {};
for (const [name, provider] of Object.entries(PROVIDERS)) {
  seen[name] = await look(provider);
}
console.log(JSON.stringify(seen));
