// The column of the visitor's own machine in a tab: "characters", "forecast" or "sentiment". Its parts are found by
// their ids; what it says comes with each job, in the visitor's language.

import { Runner } from "./runner.js";

let runner;
const loaded = new Set(); // the models that the visitor asked to load, in any tab
const ARRAYS = { float32: Float32Array, int64: BigInt64Array };

const filled = (text, values) => text.replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);
const count = (number) => Math.round(number).toLocaleString("en-US");
const part = (tab, name) => document.querySelector(`#${tab}-browser-${name}`);

function paragraph(kind, text) {
  const shown = document.createElement("p");
  shown.className = kind;
  shown.textContent = text;
  return shown;
}

/** What stands in place of the column's note from now on. */
function say(tab, ...lines) {
  const place = part(tab, "speed");
  const shown = place.querySelector(".prose") ?? place;
  shown.setAttribute("role", "status");
  shown.replaceChildren(...lines);
}

const bytesOf = (text) => Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));

/** A typed array as the base64 of its bytes; in pieces, since a call takes so many arguments only. */
function textOf(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
  return btoa(text);
}

/** Load what a job's model needs, and tell how far that is. */
async function fetched(tab, { model, megabytes, words }) {
  const total = megabytes.model + (loaded.size ? 0 : megabytes.runtime);
  runner ??= new Runner();
  await runner.load(model, (received) => {
    const done = { done: (received / 1e6).toFixed(1), total: total.toFixed(1) };
    say(tab, paragraph("note", received < total * 1e6 ? filled(words.loading, done) : words.opening));
  });
  loaded.add(model);
  globalThis.seqexportLoaded = [...loaded]; // for the server, which names the buttons
}

/** Load and do what a job asks for: its result, or null where that failed, which the column says. */
async function done(tab, asked, work) {
  const job = JSON.parse(JSON.stringify(asked)); // gradio's own objects can't be sent to a worker
  try {
    await fetched(tab, job);
    return await work(job);
  } catch (error) {
    say(tab, paragraph("note", filled(job.words.failed, { why: error.message })));
    return null;
  }
}

// --- A text, which is written.

/** The text so far after its prompt, as the other columns show theirs. */
function show(tab, prompt, text) {
  const code = document.createElement("code");
  const before = document.createElement("span");
  before.className = "prompt";
  before.textContent = prompt;
  code.append(before, text);
  part(tab, "body").querySelector(".written").replaceChildren(code);
}

/** The button: load what is not there yet, and write → the record of what was written. */
export async function press(tab, asked) {
  show(tab, asked.shown, "");
  const record = await done(tab, asked, async (job) => {
    const uniforms = new Float32Array(bytesOf(job.uniforms).buffer);
    return runner.write({ ...job, uniforms }, ({ text, count: number, seconds }) => {
      show(tab, job.shown, text);
      const time = filled(job.words.time, { n: count(number), ms: (1000 * seconds).toFixed(1) });
      say(tab, paragraph("ms", filled(job.words.speed, { n: count(number / seconds) })), paragraph("note", time));
    });
  });
  return [record && !record.stopped ? { tokens: record.tokens, seconds: record.seconds } : null];
}

/** A race: as the button, where the visitor has loaded this model; otherwise nothing. */
export async function race(tab, job) {
  if (job && loaded.has(job.model)) return press(tab, job);
  if (job && runner) say(tab, paragraph("note", job.words.first));
  return [null];
}

/** The Stop button. */
export function stop() {
  runner?.stop();
  return [];
}

// --- An answer: the model's outputs, which the server checks and draws.

/** Load what is not there yet, and answer → the outputs as bytes, with their time. A job may be a note in its place. */
export async function answer(tab, asked) {
  if (!asked) return [null];
  if (asked.note) {
    say(tab, paragraph("note", asked.note));
    return [null];
  }
  return [await done(tab, asked, async ({ model, inputs, outputs, number, words }) => {
    say(tab, paragraph("note", words.answering));
    const tensors = {};
    for (const [name, { type, dims, data }] of Object.entries(inputs)) {
      tensors[name] = { type, dims, data: new ARRAYS[type](bytesOf(data).buffer) };
    }
    const found = await runner.compute({ model, inputs: tensors, outputs });
    const packed = Object.entries(found.outputs).map(([name, { dims, data }]) => [name, { dims, data: textOf(data) }]);
    return { number, outputs: Object.fromEntries(packed), milliseconds: found.milliseconds, calls: found.calls };
  })];
}

/** What the server says of the answer, now that it has seen it: [kind, text] for each paragraph. */
export function tell(tab, said) {
  if (said) say(tab, ...[...said].map(([kind, text]) => paragraph(kind, text)));
  return [];
}
