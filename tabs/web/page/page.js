// The page: three tasks, each with its nets, asked by a form and answered by the worker.

import { Runner } from "./runner.js";
import { normal, uniform } from "./client.js";
import { cut, opinion, plot, quantile } from "./shown.js";

const find = (query, within = document) => within.querySelector(query);
const json = (name) => fetch(new URL(name, import.meta.url)).then((response) => response.json());
const chinese = navigator.languages.find((tag) => /^(en|zh)/i.test(tag))?.toLowerCase().startsWith("zh") ?? false;
const [about, dictionary] = await Promise.all([json("nets.json"), chinese ? json("zh.json") : {}]);

/** A text in the visitor's language, its places filled in. */
const say = (text, values = {}) =>
  (dictionary[text] ?? text).replace(/\{(\w+)\}/g, (place, name) => values[name] ?? place);

const TASKS = { forecast: say("Forecast"), classify: say("Sentiment"), generate: say("Characters") };
const NAMES = { en: "English", zh: "中文" };
const BOOKS = { en: "Shakespeare (English)", zh: "三国演义 (中文)" };
const PROMPTS = { en: "ROMEO\n", zh: "却说玄德" };
const TEXTS = {
  en: "The first hour is slow, and I nearly gave up, but then the story finds its feet, and the ending is wonderful.\n"
    + "Not bad at all.",
  zh: "房间有点旧，早餐也很一般，不过服务员非常热情，下次还会再来。\n质量太差了，非常失望。",
};
const MAX_TEXTS = 32;

const form = find("#question");
const runner = new Runner();
const loaded = new Set();
let task = "forecast";
let busy = false;

const fields = () => Object.fromEntries(new FormData(form));
const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

/** The net that the form asks. */
function net() {
  const language = form.elements[task]?.value ?? null; // of numbers there is one net
  return about.nets.find((one) => one.task === task && one.language === language);
}

/** How many bytes are still to come before the net can run. */
const missing = () => (loaded.size ? 0 : about.runtime) + (loaded.has(net().file) ? 0 : net().bytes);

function refresh() {
  for (const group of document.querySelectorAll(".fields")) {
    group.hidden = group.dataset.task !== task;
    for (const field of group.querySelectorAll("input, select, textarea")) field.disabled = group.hidden;
  }
  for (const button of document.querySelectorAll("#tasks button")) {
    button.setAttribute("aria-pressed", button.name === task);
  }
  const bytes = missing();
  find("#run").textContent = bytes ? say("Run (loads {size} MB)", { size: megabytes(bytes) }) : say("Run");
  find("#run").disabled = busy;
  find("#stop").hidden = task !== "generate";
  find("#stop").disabled = !busy;
  find("#about").textContent = say("This net was trained on {source} (licence: {licence}).", net());
}

function tell(lead, detail = "") {
  find("#lead").textContent = lead;
  find("#detail").textContent = detail;
}

const milliseconds = ({ milliseconds: value, calls }) =>
  say("{ms} ms on your machine, the median of {calls} calls.", { ms: value.toFixed(2), calls });

// --- Forecast: the sunspots before a January, rolled on; the first path has no noise and is the central one.

async function forecast(model) {
  const { year, horizon, paths, noise: seed } = Object.fromEntries(
    Object.entries(fields()).map(([name, value]) => [name, Number(value)]));
  const { values, first, context, season } = about.series;
  const start = (year - first) * 12;
  const draw = normal(uniform(seed));
  const noise = Array.from({ length: paths + 1 }, (_, path) =>
    Array.from({ length: horizon }, () => (path ? draw() : 0)));
  const history = values.slice(Math.max(0, start - context), start);
  const answered = await runner.ask({ model, line: { history: [history], noise: [noise] } });
  const [central, ...drawn] = answered.path[0];
  const bands = Object.fromEntries([5, 25, 75, 95].map((share) =>
    [`q${String(share).padStart(2, "0")}`,
      central.map((_, step) => quantile(drawn.map((path) => path[step]), share / 100))]));
  const truth = values.slice(start, start + horizon);
  const shown = Math.min(2 * season, start);
  const seen = values.slice(start - shown, start);
  find("#shown").replaceChildren(plot({ seen, truth, central, bands, firstYear: year - shown / 12 },
    find("#shown").clientWidth, say));
  const off = truth.reduce((sum, value, step) => sum + Math.abs(value - central[step]), 0) / truth.length;
  const lead = truth.length
    ? say("The central path is off by {off} on average.", { off: off.toFixed(1) })
    : say("What comes then is not known yet.");
  tell(lead, milliseconds(answered));
  return { central, bands, known: truth.length, milliseconds: answered.milliseconds };
}

// --- Sentiment: each line by itself.

async function classify(model) {
  const texts = fields().texts.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!texts.length || texts.length > MAX_TEXTS) {
    throw new Error(say("there are {n} texts; expected 1 to {most}, one a line", { n: texts.length, most: MAX_TEXTS }));
  }
  find("#shown").replaceChildren();
  const answers = [];
  for (const text of texts) {
    const { tokens, labels, unit, lowercase } = await runner.read({ model, text });
    const { probabilities: [shares], running, milliseconds: ms } = await runner.ask({ model, line: text });
    const best = shares.indexOf(Math.max(...shares));
    const positive = running[0].map((row) => row[1]);
    find("#shown").append(opinion(cut(text, unit, lowercase), tokens, positive, say(labels[best]), shares[best], say));
    answers.push({ text, label: labels[best], probabilities: shares, running: positive, milliseconds: ms });
  }
  const total = answers.reduce((sum, answer) => sum + answer.milliseconds, 0);
  const positive = answers.filter((answer) => answer.label === "positive").length;
  tell(say("{n} of {all} are positive.", { n: positive, all: answers.length }),
    say("{ms} ms on your machine for all of them, one after another.", { ms: total.toFixed(2) }));
  return { answers };
}

// --- Characters: written on from the prompt, with the state carried from part to part.

async function generate(model) {
  const { prompt: text, steps, seed, temperature, topK, topP } = fields();
  const { tokens: prompt } = await runner.read({ model, text });
  if (!prompt.some(Boolean)) throw new Error(say("the net knows none of the prompt's characters"));
  const random = uniform(Number(seed));
  const uniforms = Float32Array.from({ length: Number(steps) }, random);
  const settings = { temperature: Number(temperature), top_k: Number(topK), top_p: Number(topP) };
  const shown = document.createElement("pre");
  const before = document.createElement("span");
  const written = document.createElement("span");
  shown.className = "written";
  before.className = "prompt";
  before.textContent = text;
  shown.append(before, written);
  find("#shown").replaceChildren(shown);
  const done = await runner.write({ model, prompt, uniforms, settings }, ({ text: so, count, seconds }) => {
    written.textContent = so;
    tell(say("{n} characters/s", { n: Math.round(count / seconds).toLocaleString("en-US") }),
      say("{n} in {ms} ms of the model's own time, on your machine.", { n: count, ms: (1000 * seconds).toFixed(1) }));
  });
  return { text: done.text, tokens: done.tokens, milliseconds: 1000 * done.seconds };
}

const RUN = { forecast, classify, generate };

async function run() {
  const { file } = net();
  const bytes = missing();
  const told = (done) => tell(say("Loading: {done} of {total} MB", { done: megabytes(done), total: megabytes(bytes) }));
  busy = true;
  refresh();
  find("#numbers").hidden = true;
  find("#shown").replaceChildren();
  try {
    await runner.load(file, told);
    loaded.add(file);
    tell(say("Running …"));
    const numbers = await RUN[task](file);
    find("#numbers pre").textContent = JSON.stringify({ task, net: file, ...numbers });
    find("#numbers").hidden = false;
  } catch (error) {
    tell(say("This did not run."), error.message);
  }
  busy = false;
  refresh();
}

// --- The form, filled and heard.

document.documentElement.lang = chinese ? "zh" : "en";
for (const place of document.querySelectorAll("[data-say]")) place.textContent = say(place.textContent);
find("#tasks").ariaLabel = say("Task");
for (const [name, label] of Object.entries(TASKS)) {
  const button = document.createElement("button");
  Object.assign(button, { name, type: "button", textContent: label });
  button.onclick = () => {
    if (busy) return;
    task = name;
    tell("");
    find("#shown").replaceChildren();
    find("#numbers").hidden = true;
    refresh();
  };
  find("#tasks").append(button);
}
const choices = [["classify", NAMES, "texts", TEXTS], ["generate", BOOKS, "prompt", PROMPTS]];
for (const [name, labels, filled, starts] of choices) {
  const choice = form.elements[name];
  const languages = about.nets.filter((one) => one.task === name).map((one) => one.language);
  for (const language of languages) choice.add(new Option(labels[language], language));
  if (chinese && languages.includes("zh")) choice.value = "zh";
  choice.onchange = () => {
    form.elements[filled].value = starts[choice.value];
    refresh();
  };
  form.elements[filled].value = starts[choice.value];
}
Object.assign(form.elements.year, { min: about.series.from, max: about.series.to, value: about.series.opening });
form.onsubmit = (event) => {
  event.preventDefault();
  if (!busy) run();
};
find("#stop").onclick = () => runner.stop();
refresh();
