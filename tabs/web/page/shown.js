// How answers look: figures as SVG, texts in the shades of the net's opinion. Everything that a visitor typed goes in as
// text, never as HTML.

import { WORDS } from "./client.js";

const SVG = "http://www.w3.org/2000/svg";
const POINTS = 300; // of a line of an opinion

function drawn(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function made(name, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(name), attributes);
  element.append(...children);
  return element;
}

/** The value below which a share of the numbers lies, between two of them where it falls so. */
export function quantile(numbers, share) {
  const sorted = Float64Array.from(numbers).sort();
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
}

/** The end of the history, what came then, the central path in its bands; a step is a month. room: pixels there are. */
export function plot({ seen, truth, central, bands, firstYear }, room, say) {
  const width = Math.min(900, Math.max(320, room)); // so that its words are as large as the page's
  const [height, left, bottom, top] = [Math.round(Math.max(220, 0.42 * width)), 44, 26, 10];
  const steps = seen.length + central.length;
  const highest = 1.05 * Math.max(...seen, ...truth, ...central, ...bands.q95, 1);
  const lowest = Math.min(0, ...central, ...bands.q05);
  const x = (step) => left + ((width - left - 8) * step) / (steps - 1);
  const y = (value) => height - bottom - ((height - bottom - top) * (value - lowest)) / (highest - lowest);
  const points = (values, from) => values.map((value, step) => `${x(from + step).toFixed(1)},${y(value).toFixed(1)}`);
  const label = say("The history, and {n} months ahead", { n: central.length });
  const figure = drawn("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const unit = 10 ** Math.floor(Math.log10(highest));
  const gap = [unit, unit / 2, unit / 5].find((one) => highest / one >= 3);
  for (let value = Math.ceil(lowest / gap) * gap; value <= highest; value += gap) {
    figure.append(drawn("line", { class: "grid", x1: left, x2: width - 8, y1: y(value), y2: y(value) }),
      drawn("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  const years = Math.max(1, Math.ceil(steps / 12 / (width / 90)));
  for (let year = Math.ceil(firstYear); (year - firstYear) * 12 < steps - 6; year += years) {
    const place = x((year - firstYear) * 12);
    figure.append(drawn("text", { x: place, y: height - 6, "text-anchor": "middle" }, String(year)));
  }
  const from = seen.length;
  for (const [low, high] of [["q05", "q95"], ["q25", "q75"]]) {
    const around = [...points(bands[high], from), ...points(bands[low], from).reverse()];
    figure.append(drawn("polygon", { class: "band", points: around.join(" ") }));
  }
  figure.append(
    drawn("polyline", { class: "seen", points: points([...seen, ...truth], 0).join(" ") }),
    drawn("polyline", { class: "central", points: points(central, from).join(" ") }),
    drawn("line", { class: "start", x1: x(from - 0.5), x2: x(from - 0.5), y1: top, y2: height - bottom }));
  const names = { seen: say("observed"), central: say("central path"), band: say("90 % and 50 % of the sampled paths") };
  const list = made("ul", { className: "legend" }, ...Object.entries(names).map(([kind, name]) =>
    made("li", { className: kind }, name)));
  return made("div", {}, list, figure);
}

/** A text cut into its tokens and what lies between: [piece, whether it is a token]. */
export function cut(text, unit, lowercase) {
  if (unit === "character") return [...text].map((piece) => [piece, true]);
  const pieces = [];
  let end = 0;
  const read = lowercase ? text.replace(/[A-Z]/g, (letter) => letter.toLowerCase()) : text;
  for (const { 0: { length }, index } of read.matchAll(WORDS)) {
    if (index > end) pieces.push([text.slice(end, index), false]);
    pieces.push([text.slice(index, (end = index + length)), true]);
  }
  return end < text.length ? [...pieces, [text.slice(end), false]] : pieces;
}

/** One text's label, how the opinion moved, and its words in the shades of it. */
export function opinion(pieces, tokens, positive, label, share, say) {
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  let step = 0;
  const words = pieces.map(([piece, isToken]) => {
    if (!isToken || step >= positive.length) return piece;
    const value = positive[step];
    const shade = (0.1 + 1.1 * Math.abs(value - 0.5)).toFixed(2);
    const title = say("{share} positive", { share: percent(value) });
    const word = made("span", { title, className: tokens[step] ? "" : "unknown" }, piece);
    word.style.backgroundColor = `rgba(${value >= 0.5 ? "63, 130, 224" : "201, 120, 42"}, ${shade})`;
    step += 1;
    return word;
  });
  const count = Math.min(Math.max(2, positive.length), POINTS);
  const points = Array.from({ length: count }, (_, place) => {
    const value = positive[Math.round((place / (count - 1)) * (positive.length - 1))];
    return `${((100 * place) / (count - 1)).toFixed(2)},${(100 * (1 - value)).toFixed(1)}`;
  });
  const described = say("Probability of positive, from {first} to {last}",
    { first: percent(positive[0]), last: percent(positive.at(-1)) });
  const line = drawn("svg", { class: "spark", viewBox: "0 -4 100 108", preserveAspectRatio: "none", role: "img",
    "aria-label": described },
    drawn("line", { x1: 0, y1: 50, x2: 100, y2: 50 }), drawn("polyline", { points: points.join(" ") }));
  return made("div", { className: "opinion" }, made("p", {}, made("b", {}, label), ` ${percent(share)}`), line,
    made("p", { className: "words" }, ...words));
}
