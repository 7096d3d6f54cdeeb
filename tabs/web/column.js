// The column of the visitor's own machine in the Characters tab. Its parts are found by their ids; what it says comes
// with each job, in the visitor's language.

import { Runner } from "./runner.js";

let runner;
const loaded = new Set(); // the models that the visitor asked to load

const filled = (text, values) => text.replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);
const count = (number) => Math.round(number).toLocaleString("en-US");
const part = (id) => document.querySelector(`#${id}`);

function paragraph(kind, text) {
  const shown = document.createElement("p");
  shown.className = kind;
  shown.textContent = text;
  return shown;
}

/** What stands in place of the column's note from now on. */
function say(...lines) {
  const place = part("browser-speed");
  const shown = place.querySelector(".prose") ?? place;
  shown.setAttribute("role", "status");
  shown.replaceChildren(...lines);
}

/** The text so far after its prompt, as the other columns show theirs. */
function show(prompt, text) {
  const code = document.createElement("code");
  const before = document.createElement("span");
  before.className = "prompt";
  before.textContent = prompt;
  code.append(before, text);
  part("browser-text").querySelector(".written").replaceChildren(code);
}

const uniformsOf = (text) => new Float32Array(Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)).buffer);

async function written(job) {
  const told = (received) => {
    if (received < job.megabytes * 1e6) {
      const done = { done: (received / 1e6).toFixed(1), total: job.megabytes.toFixed(1) };
      say(paragraph("note", filled(job.words.loading, done)));
    } else say(paragraph("note", job.words.opening));
  };
  runner ??= new Runner();
  await runner.load(job.model, told);
  loaded.add(job.model);
  return runner.write({ ...job, uniforms: uniformsOf(job.uniforms) }, ({ text, count: number, seconds }) => {
    show(job.shown, text);
    const time = filled(job.words.time, { n: count(number), ms: (1000 * seconds).toFixed(1) });
    say(paragraph("ms", filled(job.words.speed, { n: count(number / seconds) })), paragraph("note", time));
  });
}

/** The button: load what is not there yet, and write → the record of what was written, and the button's next name. */
export async function press(asked, label) {
  const job = JSON.parse(JSON.stringify(asked)); // gradio's own objects can't be sent to a worker
  show(job.shown, "");
  try {
    const { tokens, seconds, stopped } = await written(job);
    return [stopped ? null : { tokens, seconds }, job.words.again];
  } catch (error) {
    say(paragraph("note", filled(job.words.failed, { why: error.message })));
    return [null, label];
  }
}

/** A race: as the button, where the visitor has loaded this model; otherwise nothing. */
export async function race(job, label) {
  if (!job || !loaded.has(job.model)) {
    if (job && runner) say(paragraph("note", job.words.first));
    return [null, label];
  }
  return press(job, label);
}

/** The button's name for a model, of what is offered for each: with its size until it was loaded. */
export function label(model, offers) {
  const { file, load, again } = offers[model];
  return [loaded.has(file) ? again : load];
}

/** The Stop button. */
export function stop() {
  runner?.stop();
  return [];
}
