// What `openai.mjs` and `ai_sdk.mjs` share.
// usage of both: BASE_URL=... API_KEY=... SPENT_KEY=... node PROGRAM.mjs DIRECTORY_WITH_NODE_MODULES
import { createRequire } from "node:module";
import { resolve } from "node:path";

/** Loads a package from the directory named on the command line. */
export const load = createRequire(resolve(process.argv[2], "package.json"));

export const baseURL = `${process.env.BASE_URL}/v1`;
export const key = process.env.API_KEY;
export const prompt = "say a few words";
export const room = 2500; // tokens enough for any number of tool calls that the model makes
export const schema = {
  type: "object",
  properties: { city: { type: "string", enum: ["Oslo", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};

/** The status of each error: for a wrong key, for an unknown model, for a key whose pool is empty. */
export async function refusals(ask) {
  const status = (given, model) =>
    ask(given, model).then(
      () => 200,
      (error) => error.status ?? error.statusCode ?? String(error),
    );
  return [await status("hk-wrong", "tiny"), await status(key, "no-such-model"), await status(process.env.SPENT_KEY, "tiny")];
}
