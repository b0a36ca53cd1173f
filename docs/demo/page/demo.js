import { pixelsOf } from "./digit.js";
import { element } from "./element.js";
import { EXAMPLES } from "./examples.js";
import { Kernels } from "./kernels.js";
import { FORMS, imageOf, load, logits, milliseconds, softmax } from "./net.js";

const ROUNDS = 20; // of timing for each digit; the first ones are slow, as the browser still compiles

const find = (id) => document.getElementById(id);
const pad = find("pad"), reading = find("reading"), answer = find("answer");
const row = find("row"), column = find("column");
let about, kernels; // once they are loaded
let strokes = [], isExample = false; // An example makes room for what is drawn.
let pixels = [], outputs = {}; // of the digit that was read last
const times = { trained: Infinity, fused: Infinity }; // of the quickest round so far

// Drawing.

function draw(drawn, example = false) {
  [strokes, isExample] = [drawn, example];
  const points = strokes.map((stroke) => [...stroke, stroke.at(-1)].join(" ")); // A single point is a line to itself.
  pad.replaceChildren(...points.map((points) => element("polyline", { points })));
  refresh();
}

/** Where a pointer was since its last event, on a pad of 100×100. */
function pointsOf(event) {
  const { left, top, width, height } = pad.getBoundingClientRect();
  const events = event.getCoalescedEvents?.() ?? [];
  const all = events.length ? events : [event];
  return all.map(({ clientX, clientY }) => [((clientX - left) / width) * 100, ((clientY - top) / height) * 100]);
}

pad.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button) return;
  pad.setPointerCapture(event.pointerId);
  draw([...(isExample ? [] : strokes), pointsOf(event)]);
});
pad.addEventListener("pointermove", (event) => {
  if (!pad.hasPointerCapture(event.pointerId)) return;
  draw([...strokes.slice(0, -1), [...strokes.at(-1), ...pointsOf(event)]]);
});
find("clear").addEventListener("click", () => draw([]));
EXAMPLES.forEach((example, digit) => {
  const button = element("button", { type: "button", "aria-label": `Draw a ${digit}` }, `${digit}`);
  button.addEventListener("click", () => draw(example, true));
  find("examples").append(button);
});
document.addEventListener("keydown", ({ key, ctrlKey, altKey, metaKey }) => {
  if (/^\d$/.test(key) && !(ctrlKey || altKey || metaKey)) draw(EXAMPLES[key], true);
});

// Reading.

let isStale = false, isReading = false;

/** Reads the drawing, and again where it changes meanwhile. */
async function refresh() {
  isStale = true;
  if (isReading || !about) return;
  isReading = true;
  reading.setAttribute("aria-busy", "true");
  while (isStale) {
    isStale = false;
    await read();
  }
  reading.setAttribute("aria-busy", "false");
  isReading = false;
}

async function read() {
  pixels = strokes.length ? pixelsOf(strokes) : [];
  showKernels();
  const image = pixels.length && imageOf(pixels, about);
  outputs = image ? { trained: await logits("trained", image), fused: await logits("fused", image) } : {};
  showAnswer();
  if (!image) return;
  for (let round = 0; round < ROUNDS; round++) {
    for (const form in FORMS) {
      await new Promise((resolve) => setTimeout(resolve)); // lets the page react
      if (isStale) return;
      times[form] = Math.min(times[form], await milliseconds(form, image));
    }
    showTimes();
  }
}

// Showing.

/** Adds a bar to a list; returns what sets its length, from 0 to 1, and its text. */
function bar(list, name, attributes = {}) {
  const item = element("li", attributes, name, element("i"), element("span"));
  list.append(item);
  return (share, text) => {
    item.style.setProperty("--share", share);
    item.lastChild.textContent = text;
  };
}
const classBars = EXAMPLES.map((_, digit) => bar(find("classes"), `${digit}`));
const timeBars = Object.fromEntries(
  Object.entries(FORMS).map(([form, name]) => [form, bar(find("times"), name, { class: form })]),
);

function say(text) {
  if (answer.textContent !== text) answer.textContent = text; // Else it would be read out again.
}

function showAnswer() {
  const { trained, fused } = outputs;
  const form = document.querySelector("input[name=form]:checked").value;
  find("classes").className = form;
  if (!fused) {
    for (const show of classBars) show(0, "");
    return say("Draw a digit");
  }
  const probabilities = softmax(outputs[form]);
  probabilities.forEach((share, digit) => classBars[digit](share, `${(100 * share).toFixed(1)} %`));
  say(`This is a ${probabilities.indexOf(Math.max(...probabilities))}`);
  const difference = Math.max(...fused.map((output, digit) => Math.abs(output - trained[digit])));
  find("difference").textContent = `The outputs differ by at most ${difference.toExponential(0)}.`;
}

function showTimes() {
  const longest = Math.max(times.trained, times.fused);
  for (const form in FORMS) timeBars[form](times[form] / longest, `${times[form].toFixed(2)} ms`);
}

function showKernels() {
  kernels.show(Number(row.value), Number(column.value), pixels);
}

for (const input of document.querySelectorAll("input[name=form]")) input.addEventListener("change", showAnswer);
for (const input of [row, column]) input.addEventListener("input", showKernels);

// In a frame, the page is as high as it needs to be, and as dark as the site around it.
const { frameElement: frame } = window;
if (frame) {
  const root = document.documentElement, site = frame.ownerDocument.body;
  const fit = () => (frame.style.height = `${root.offsetHeight}px`);
  new ResizeObserver(fit).observe(root);
  const follow = () => (root.style.colorScheme = { default: "light", slate: "dark" }[site.dataset.mdColorScheme] ?? "");
  new MutationObserver(follow).observe(site, { attributeFilter: ["data-md-color-scheme"] });
  follow();
}

try {
  about = await load();
} catch (error) {
  say(`The net cannot be loaded: ${error.message}`);
  throw error;
}
kernels = new Kernels(find("kernels"), about, (y, x) => {
  [row.value, column.value] = [y, x];
  showKernels();
});
find("scale").append(...kernels.scale());
const macs = Object.fromEntries(Object.entries(about.macs).map(([form, count]) => [form, count.toLocaleString("en")]));
find("macs").textContent = `${macs.trained} multiply-accumulates as trained, ${macs.fused} fused.`;
draw(EXAMPLES[7], true);
