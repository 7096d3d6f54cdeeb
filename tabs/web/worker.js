// Runs exported files with onnxruntime-web, in a worker of the page, so that the page never freezes.
//
// A message is {id, kind, …}; each is answered by {id, result} or {id, error}, and meanwhile by {id, part}. They are
// worked on one after another, but for "stop", which ends the text that is being written.

import * as ort from "./ort.js";
import { Model, answer, feedsOf, uniform } from "./client.js";

const PERIOD = 60; // milliseconds between two parts of a text
const CHUNK = 8; // characters at least in a call, so that what is timed is the writing and not the calling
const MEASURED = 500; // milliseconds that an answer may be asked for again, to time it

const models = new Map(); // name → the opened file
let started; // onnxruntime itself: a promise, once somebody asked for it
let working = Promise.resolve();
let stops = 0;

/** A file beside this one, as bytes; `told` hears how many came with each piece. */
async function fetched(name, told) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  const pieces = [];
  const reader = response.body.getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    pieces.push(read.value);
    told(read.value.length);
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

/** What was compressed; some servers say so, and then the browser has opened it already. */
async function inflated(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function start(told) {
  ort.env.wasm.numThreads = 1; // more would need headers that a plain file server does not send
  ort.env.wasm.proxy = false;
  ort.env.wasm.wasmPaths = { mjs: new URL("ort-wasm.js", import.meta.url).href };
  ort.env.wasm.wasmBinary = (await inflated(await fetched("ort-wasm.wasm.gz", told))).buffer;
}

/** Load a model, and onnxruntime before the first: → how many bytes were fetched. */
async function load({ model }, part) {
  let bytes = 0;
  const told = (count) => part((bytes += count));
  started ??= start(told);
  try {
    await started;
  } catch (error) {
    started = undefined; // the next time anew
    throw error;
  }
  if (!models.has(model)) {
    const file = await inflated(await fetched(`models/${model}`, told));
    models.set(model, await Model.open(ort, file));
  }
  return { bytes };
}

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/**
 * Write a text part by part, the state carried over, as the tab's other columns are written: each part is {text, count,
 * seconds} so far, where the seconds are the model's own. `slower` times those go by before the next part is begun.
 */
async function write({ model: name, prompt, uniforms, settings, slower = 1 }, part) {
  const model = models.get(name);
  const begun = stops;
  model.reset();
  await model.run({ prompt: [prompt], uniforms: [[uniforms[0]]], ...settings }); // to warm up
  model.reset();
  const tokens = [];
  let [read, seconds, chunk] = [prompt, 0, CHUNK];
  const began = performance.now();
  while (tokens.length < uniforms.length && begun === stops) {
    const feeds = { prompt: [read], uniforms: [[...uniforms.subarray(tokens.length, tokens.length + chunk)]] };
    const start = performance.now();
    const { tokens: written } = await model.run({ ...feeds, ...settings });
    seconds += (performance.now() - start) / 1000;
    tokens.push(...Array.from(written.data, Number));
    read = tokens.slice(-1);
    await sleep(Math.max(0, 1000 * slower * seconds - (performance.now() - began))); // and a stop can be heard
    part({ text: model.decode(tokens), count: tokens.length, seconds });
    chunk = Math.max(CHUNK, Math.round((PERIOD / 1000 / slower) * (tokens.length / Math.max(seconds, 1e-4))));
  }
  return { tokens, text: model.decode(tokens), seconds, stopped: begun !== stops };
}

/** A model's outputs for its feeds, and the median of its calls' milliseconds. */
async function timed(model, feeds) {
  const taken = [];
  let outputs;
  for (const end = performance.now() + MEASURED; taken.length < 2 || performance.now() < end; ) {
    model.reset();
    const start = performance.now();
    outputs = await model.run(feeds);
    taken.push(performance.now() - start);
    if (taken.length === 26) break;
  }
  const sorted = taken.slice(1).sort((one, other) => one - other); // the first was to warm up
  return { outputs, milliseconds: sorted[Math.floor(sorted.length / 2)], calls: sorted.length };
}

/** One answer: `line` is what the client's program reads from a line, or the graph's own inputs. */
async function ask({ model: name, line, options = {} }) {
  const model = models.get(name);
  const { outputs, ...times } = await timed(model, feedsOf(model, line, options, uniform(options.seed ?? 0)));
  return { ...answer(model, outputs), ...times };
}

/** One answer to the graph's own inputs, {name: {type, dims, data}} → the outputs of these names, likewise. */
async function compute({ model: name, inputs, outputs: names }) {
  const made = ([input, { type, dims, data }]) => [input, new ort.Tensor(type, data, dims)];
  const { outputs, ...times } = await timed(models.get(name), Object.fromEntries(Object.entries(inputs).map(made)));
  const taken = names.map((output) => [output, { dims: [...outputs[output].dims], data: outputs[output].data }]);
  return { outputs: Object.fromEntries(taken), ...times };
}

/** The numbers of a text's tokens, and what the file says of its data. */
async function read({ model: name, text }) {
  const model = models.get(name);
  const { unit, lowercase } = model.vocabulary;
  return { tokens: model.encode(text), labels: model.labels, unit, lowercase };
}

const kinds = { load, write, ask, compute, read };

self.onmessage = ({ data: { id, kind, ...job } }) => {
  if (kind === "stop") {
    stops += 1;
    return;
  }
  working = working
    .then(() => kinds[kind](job, (part) => self.postMessage({ id, part })))
    .then((result) => self.postMessage({ id, result }), (error) => self.postMessage({ id, error: error.message }));
};
