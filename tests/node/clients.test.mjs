// OpenAI's Node client and Vercel's AI SDK, which speaks the protocol by itself, against a gateway
// whose URL is in OUTFITTER_URL: its base is `base-model`, `node/bot` is a saved loadout, and the
// prompt `fail midway` breaks a stream.
import assert from "node:assert/strict";
import test from "node:test";

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import OpenAI from "openai";

const baseURL = `${process.env.OUTFITTER_URL}/v1`;
const openai = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const outfitter = createOpenAICompatible({ name: "outfitter", baseURL, includeUsage: true });
const BOT = "node/bot";
const messages = [{ role: "user", content: "go" }];

async function all(stream) {
  const found = [];
  for await (const event of stream) found.push(event);
  return found;
}

test("openai: a chat completion of a saved model", async () => {
  const answer = await openai.chat.completions.create({ model: BOT, messages });
  assert.equal(answer.model, BOT);
  assert.equal(answer.task_vectors.saved.name, BOT);
  assert.ok(answer._request_id);
});

test("openai: task vectors on request, which its types do not know", async () => {
  const { data, response } = await openai.chat.completions
    .create({ model: "base-model", messages, task_vectors: { "node/json": 0.5 } })
    .withResponse();
  assert.equal(data.task_vectors.vectors[0].name, "node/json");
  assert.match(response.headers.get("x-outfitter-loadout"), /^sha256:/);
});

test("openai: a stream", async () => {
  const stream_options = { include_usage: true };
  const body = { model: BOT, messages, stream: true, stream_options };
  const chunks = await all(await openai.chat.completions.create(body));
  assert.deepEqual([...new Set(chunks.map((chunk) => chunk.model))], [BOT]);
  assert.equal(chunks.at(-1).usage.total_tokens, 4);
});

test("openai: a response, whole and streamed", async () => {
  const answer = await openai.responses.create({ model: BOT, input: "go" });
  assert.equal(answer.model, BOT);
  assert.match(answer.output_text, /^said /);
  const events = await all(openai.responses.stream({ model: BOT, input: "go" }));
  assert.equal(events[0].response.model, BOT);
  assert.equal(events.at(-1).type, "response.completed");
});

test("openai: models", async () => {
  const ids = (await all(openai.models.list())).map((model) => model.id);
  assert.ok(ids.includes("base-model") && ids.includes(BOT));
  assert.equal((await openai.models.retrieve(BOT)).owned_by, "node");
});

test("openai: errors have their class", async () => {
  const ask = (fields) => openai.chat.completions.create({ model: BOT, messages, ...fields });
  await assert.rejects(ask({ model: "nobody" }), OpenAI.NotFoundError);
  await assert.rejects(ask({ task_vectors: {} }), { code: "task_vectors_forbidden", status: 400 });
  await assert.rejects(ask({ heat: 1 }), { code: "unknown_parameter", param: "heat" });
  await assert.rejects(
    openai.embeddings.create({ model: BOT, input: "x" }),
    OpenAI.NotFoundError,
  );
});

test("openai: a fault amid a stream", async () => {
  const content = "fail midway";
  const body = { model: BOT, messages: [{ role: "user", content }], stream: true };
  await assert.rejects(async () => all(await openai.chat.completions.create(body)), /no node\/bot/);
  const input = { model: BOT, input: content, stream: true };
  await assert.rejects(async () => all(await openai.responses.create(input)), /no node\/bot/);
});

test("openai: an aborted stream ends", async () => {
  const content = "hang midway";
  const stream = await openai.chat.completions.create({
    model: BOT, messages: [{ role: "user", content }], stream: true,
  });
  for await (const chunk of stream) {
    assert.equal(chunk.model, BOT);
    stream.controller.abort();
  }
});

test("ai: text", async () => {
  const answer = await generateText({ model: outfitter(BOT), prompt: "go", maxRetries: 0 });
  assert.match(answer.text, /^said /);
  assert.equal(answer.response.modelId, BOT);
  assert.equal(answer.usage.totalTokens, 5);
});

test("ai: a stream with task vectors on request", async () => {
  const providerOptions = { outfitter: { task_vectors: { "node/json": 0.5 } } };
  const { textStream, usage } = streamText({
    model: outfitter("base-model"), prompt: "go", providerOptions,
  });
  const words = await all(textStream);
  assert.deepEqual([words.at(0), words.at(-1)], ["one", "three"]);
  assert.equal((await usage).totalTokens, 4);
});

test("ai: an error of the gateway", async () => {
  const failing = generateText({ model: outfitter("nobody"), prompt: "go", maxRetries: 0 });
  await assert.rejects(failing, { statusCode: 404, message: /'nobody' does not exist/ });
});

test("ai: a fault amid a stream", async () => {
  const faults = [];
  const { textStream } = streamText({
    model: outfitter(BOT), prompt: "fail midway", onError: ({ error }) => faults.push(error),
  });
  const words = await all(textStream);
  assert.equal(words.at(0), "one");
  assert.match(JSON.stringify(faults), /no node\/bot/);
});
