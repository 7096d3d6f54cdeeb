// Runs @MODEL@ with onnxruntime alone: what it has to know stands in the file's metadata.
//
// Written by seqexport deploy; yours to change.
//
//     npm install onnxruntime-node        (or onnxruntime-web, which is slower and runs in browsers too)
//     node @PROGRAM@ [MODEL] [options] < lines
//
// Every line of standard input is a call, in JSON, and is answered by a line. The model's state is carried from line to
// line, so that a text or a series may come in pieces; an empty line begins anew. A line is
//
//     "some text"                       for a model that reads text; "" lets a generator go on
//     [1, 2.5, 3]                       the next values of a series, or tokens
//     [[1, 2], [3, 4]]                  the next steps, each with its numbers
//     {"tokens": [[1, 2]], …}           the graph's own inputs by name, as many rows as you like
//
// In a page: import {Model, feedsOf, answer} of this file, and Model.open(ort, bytes), as `main` below does.

export const WORDS = new RegExp("@WORDS@", "gu"); // what a word is, in vocabularies of words
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, bool: Uint8Array, string: Array,
};
const TYPES = { 1: "float32", 6: "int32", 7: "int64", 8: "string", 9: "bool", 11: "float64" }; // ONNX's numbers of them

// --- The file. An ONNX file is a protobuf message: fields, each with its number and its value.

/** A number of 7 bits a byte, the lowest first: its value, and where it ends. */
function varint(bytes, at) {
  let value = 0;
  for (let scale = 1; ; scale *= 128) {
    const byte = bytes[at++];
    value += (byte & 127) * scale;
    if (byte < 128) return [value, at];
  }
}

/** The fields of a message: {number, value (a number, or the bytes of what is nested), start, end}. */
function* fields(bytes) {
  for (let at = 0; at < bytes.length; ) {
    const start = at;
    let [tag, value, length] = [0, 0, 0];
    [tag, at] = varint(bytes, at);
    const kind = tag % 8;
    if (kind === 0) [value, at] = varint(bytes, at);
    else {
      if (kind === 2) [length, at] = varint(bytes, at);
      else length = kind === 5 ? 4 : 8;
      value = bytes.subarray(at, (at += length));
    }
    yield { number: Math.floor(tag / 8), value, start, end: at };
  }
}

const text = (bytes) => new TextDecoder().decode(bytes);
const one = (message, number) => [...fields(message)].find((field) => field.number === number)?.value;

/** A tensor of the file: {type, dims, data}. */
function tensorOf(message) {
  const dims = [];
  for (const { value } of [...fields(message)].filter((field) => field.number === 1)) {
    if (typeof value === "number") dims.push(value);
    else for (let at = 0; at < value.length; ) at = ([dims[dims.length]] = varint(value, at))[1];
  }
  const type = TYPES[one(message, 2)];
  return { type, dims, data: new ARRAYS[type]((one(message, 9) ?? new Uint8Array()).slice().buffer) };
}

/**
 * The file's metadata; the defaults of its inputs, by name; and the same file without them. JavaScript's onnxruntime
 * does not know inputs with a default (onnxruntime-node takes such an input and ignores it), so here each is required
 * and fed: the state, zero at first, among them.
 */
function opened(bytes) {
  const metadata = {};
  let graph;
  for (const field of fields(bytes)) {
    if (field.number === 14) metadata[text(one(field.value, 1))] = text(one(field.value, 2) ?? new Uint8Array());
    if (field.number === 7) graph = field;
  }
  const parts = [...fields(graph.value)];
  const inputs = new Set(parts.filter((field) => field.number === 11).map((field) => text(one(field.value, 1))));
  const defaults = {};
  const kept = parts.filter((field) => {
    const name = field.number === 5 ? text(one(field.value, 8)) : undefined;
    if (!inputs.has(name)) return true;
    defaults[name] = tensorOf(field.value);
    return false;
  });
  const size = kept.reduce((sum, field) => sum + field.end - field.start, 0);
  const head = [(7 << 3) | 2]; // field 7, nested, and its size
  let rest = size;
  for (; rest >= 128; rest = Math.floor(rest / 128)) head.push((rest % 128) + 128);
  head.push(rest);
  const required = new Uint8Array(graph.start + head.length + size + bytes.length - graph.end);
  let at = 0;
  const put = (piece) => { required.set(piece, at); at += piece.length; };
  put(bytes.subarray(0, graph.start));
  put(Uint8Array.from(head));
  for (const field of kept) put(graph.value.subarray(field.start, field.end));
  put(bytes.subarray(graph.end));
  return { metadata, defaults, required };
}

// --- The model.

/** An ONNX file and the state of one stream through it. */
export class Model {
  /** `ort` is onnxruntime-node or onnxruntime-web, `bytes` a Uint8Array. */
  static async open(ort, bytes) {
    const { metadata, defaults, required } = opened(bytes);
    const session = await ort.InferenceSession.create(required, { intraOpNumThreads: 1, logSeverityLevel: 3 });
    return new Model(ort, session, metadata, defaults);
  }

  constructor(ort, session, metadata, defaults) {
    const read = (name) => JSON.parse(metadata[name] ?? "{}");
    Object.assign(this, { ort, session, defaults });
    this.part = metadata.part ?? "module";
    this.timeMajor = read("network").time_major ?? false;
    this.horizon = read("metrics").horizon ?? 12; // of a forecaster: how many values ahead it was scored at
    this.labels = read("preprocessing").labels ?? [];
    this.vocabulary = read("preprocessing").vocabulary;
    this.numbers = new Map((this.vocabulary?.tokens ?? []).map((token, number) => [token, number]));
    this.inputs = new Map(session.inputMetadata.map((input) => [input.name, input]));
    // Which output is the next call's state: {h0: "hn"}. A file without state has the map, but not the inputs.
    this.states = Object.entries(read("state_map")).filter(([name]) => this.inputs.has(name));
    this.reset();
  }

  /** Begin a new stream: the state is zero again. */
  reset() {
    this.state = {};
    this.last = []; // a generator's last token, which its state has not read yet
  }

  /** One call: {input: nested arrays} without the state → {output: tensor} without the state, which is kept. */
  async run(feeds) {
    const tensors = {};
    const sizes = {};
    for (const [name, value] of Object.entries(feeds)) {
      if (!this.inputs.has(name)) throw new Error(`there is no input ${name}; expected ${[...this.inputs.keys()]}`);
      tensors[name] = this.tensor(name, value);
      this.inputs.get(name).shape.forEach((dim, axis) => { sizes[dim] = tensors[name].dims[axis]; });
    }
    for (const [name, input] of this.inputs) {
      const known = this.defaults[name];
      if (this.state[name]) tensors[name] = this.state[name];
      else if (known) tensors[name] ??= new this.ort.Tensor(known.type, known.data, known.dims);
      else if (this.states.some(([state]) => state === name)) { // the file has no default for it: zeros
        const dims = input.shape.map((dim) => (typeof dim === "number" ? dim : sizes[dim]));
        const data = new ARRAYS[input.type](dims.reduce((product, dim) => product * dim, 1));
        tensors[name] ??= new this.ort.Tensor(input.type, data, dims);
      }
    }
    const found = await this.session.run(tensors);
    this.state = Object.fromEntries(this.states.map(([name, output]) => [name, found[output]]));
    const kept = this.states.map(([, output]) => output);
    return Object.fromEntries(Object.entries(found).filter(([name]) => !kept.includes(name)));
  }

  /** Nested arrays as a tensor of the input's type; int64 has BigInts. A tensor stays what it is. */
  tensor(name, value) {
    if (value instanceof this.ort.Tensor) return value;
    const dims = [];
    for (let level = value; Array.isArray(level); level = level[0]) dims.push(level.length);
    const { type } = this.inputs.get(name);
    const flat = [value].flat(Infinity);
    const size = dims.reduce((product, dim) => product * dim, 1);
    if (flat.length !== size) throw new Error(`${name} is not a regular array`);
    if (type === "string") {
      if (!flat.every((part) => typeof part === "string")) throw new Error(`${name} holds what is no string`);
      if (flat.some((part) => /\p{Surrogate}/u.test(part))) throw new Error("the text holds half a character");
      // JavaScript's onnxruntime would quietly end it there.
      if (flat.some((part) => part.includes("\0"))) throw new Error("the text holds a NUL character: take it out");
      return new this.ort.Tensor(type, flat, dims);
    }
    const known = flat.every((number) => typeof number === "number" || typeof number === "boolean");
    if (!known) throw new Error(`${name} holds what is no number`);
    return new this.ort.Tensor(type, ARRAYS[type].from(flat, type === "int64" ? BigInt : Number), dims);
  }

  /** A text as the numbers of its tokens, 0 for what the model does not know. */
  encode(said) {
    if (/\p{Surrogate}/u.test(said)) throw new Error("the text holds half a character");
    if (this.vocabulary.lowercase) said = said.replace(/[A-Z]/g, (letter) => letter.toLowerCase()); // of ASCII only
    const tokens = this.vocabulary.unit === "character" ? [...said] : said.match(WORDS) ?? [];
    const known = (token) => this.numbers.get(token) || (this.numbers.get(token.replaceAll("\u2019", "'")) ?? 0);
    return tokens.length ? tokens.map(known) : [0];
  }

  /** Numbers of tokens as a text. */
  decode(numbers) {
    const tokens = numbers.map((number) => (number ? this.vocabulary.tokens[number] : "\ufffd"));
    return tokens.join(this.vocabulary.unit === "character" ? "" : " ");
  }
}

/** What a line says, as the graph's inputs. */
export function feedsOf(model, line, options, random) {
  if (line !== null && typeof line === "object" && !Array.isArray(line)) return line;
  if (typeof line === "string" && !model.vocabulary) throw new Error("the model reads no text: give numbers");
  const filled = ([size, ...rest], make) =>
    size === undefined ? make() : Array.from({ length: size }, () => filled(rest, make));
  const chance = () => { // what a generator picks its tokens by
    const chosen = { temperature: options.temperature, top_k: options.topK, top_p: options.topP };
    const known = Object.fromEntries(Object.entries(chosen).filter(([name]) => model.inputs.has(name)));
    return { uniforms: filled([1, options.steps], random), ...known };
  };
  if (model.part === "classify.text" || model.part === "generate.text") { // the graph takes strings as they are
    if (typeof line !== "string") throw new Error("the model reads text: give a string");
    if (model.part === "classify.text") return { texts: [line] };
    const before = model.decode(model.last);
    const between = before && line && model.vocabulary.unit === "word" ? " " : "";
    return { prompt: [before + between + line], ...chance() };
  }
  const goingOn = line === "" && model.part === "generate" && model.last.length;
  const steps = goingOn ? [] : typeof line === "string" ? model.encode(line) : line;
  if (model.part === "forecast") { // noise of zero gives the central path
    const draw = options.paths === 1 ? () => 0 : normal(random);
    return { history: [steps], noise: filled([1, options.paths, options.horizon || model.horizon], draw) };
  }
  if (model.part === "classify") return { tokens: [steps], lengths: [steps.length] };
  if (model.part === "generate") return { prompt: [[...model.last, ...steps]], ...chance() };
  const name = [...model.inputs.keys()].find((input) => !model.states.some(([state]) => state === input));
  const shaped = name === "x" && !Array.isArray(steps[0]) ? steps.map((value) => [value]) : steps;
  return { [name]: model.timeMajor ? shaped.map((step) => [step]) : [shaped] };
}

/** The outputs as JSON has them, and what they say in words. */
export function answer(model, outputs) {
  const plain = (value) => (typeof value === "string" ? value : Number(value));
  const nested = (data, dims) => {
    if (!dims.length) return plain(data[0]);
    if (dims.length === 1) return Array.from(data, plain);
    const size = data.length / dims[0];
    const row = (place) => nested(data.slice(place * size, (place + 1) * size), dims.slice(1));
    return Array.from({ length: dims[0] }, (_, place) => row(place));
  };
  const said = Object.fromEntries(Object.entries(outputs).map(([name, { data, dims }]) => [name, nested(data, dims)]));
  const writes = model.part === "generate" || model.part === "generate.text";
  if (writes && model.states.length && said.tokens.length === 1) model.last = said.tokens[0].slice(-1);
  if (model.part === "generate" && model.vocabulary) said.text = said.tokens.map((row) => model.decode(row));
  if (model.part === "classify" && model.labels.length) {
    said.label = said.probabilities.map((row) => model.labels[row.indexOf(Math.max(...row))]);
  }
  return said;
}

// --- Chance, from a seed (mulberry32): the same seed gives the same text, though not numpy's.

export function uniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export const normal = (random) => () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

// --- The program.

async function main() {
  const [{ parseArgs }, { readFile }, { createInterface }, { fileURLToPath }] = await Promise.all(
    ["node:util", "node:fs/promises", "node:readline", "node:url"].map((name) => import(name)));
  const number = (value) => ({ type: "string", default: String(value) });
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      seed: number(0), // of the noise, and of the numbers that pick tokens
      horizon: number(0), paths: number(1), // of a forecaster: how many values ahead; 1 path is the central one
      steps: number(100), temperature: number(1), "top-k": number(0), "top-p": number(1), // of a generator
      runtime: { type: "string" }, // onnxruntime-node or onnxruntime-web
    },
  });
  const options = { topK: Number(values["top-k"]), topP: Number(values["top-p"]) };
  for (const name of ["seed", "horizon", "paths", "steps", "temperature"]) options[name] = Number(values[name]);
  const ort = await import(values.runtime ?? "onnxruntime-node").catch(() => import("onnxruntime-web"));
  const path = positionals[0] ?? fileURLToPath(new URL("@PATH@", import.meta.url));
  const model = await Model.open(ort.default ?? ort, new Uint8Array(await readFile(path)));
  const random = uniform(options.seed);
  let count = 0;
  for await (const line of createInterface({ input: process.stdin })) {
    count += 1;
    if (!line.trim()) {
      model.reset();
      continue;
    }
    try {
      console.log(JSON.stringify(answer(model, await model.run(feedsOf(model, JSON.parse(line), options, random)))));
    } catch (error) {
      console.error(`line ${count}: ${error.message}`);
      process.exit(1);
    }
  }
}

if (globalThis.process?.versions?.node && process.argv[1]) {
  const { realpathSync } = await import("node:fs");
  const { pathToFileURL } = await import("node:url");
  if (import.meta.url === pathToFileURL(realpathSync(process.argv[1])).href) await main();
}
