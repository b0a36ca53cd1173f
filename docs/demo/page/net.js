// The net in both forms, in onnxruntime's WebAssembly.

import * as onnx from "./onnxruntime.js";
import { SIDE } from "./digit.js";

/** A form, as its file is called → its name. */
export const FORMS = { trained: "as trained", fused: "fused" };
const LEVELS = 16; // of a pixel
const ROUND_MS = 15;
const sessions = {};

/** Loads both forms; returns what build.py tells of the net. */
export async function load() {
  onnx.env.wasm.numThreads = 1; // More need headers that a plain web server does not send.
  for (const form in FORMS) sessions[form] = await onnx.InferenceSession.create(`${form}.onnx`);
  return (await fetch("about.json")).json();
}

/** The net's input: pixels from 0 to 16, normalised as in training. */
export function imageOf(pixels, { mean, std }) {
  const values = pixels.map((count) => (Math.round((count * 255) / LEVELS) / 255 - mean) / std);
  return new onnx.Tensor("float32", Float32Array.from(values), [1, SIDE, SIDE, 1]);
}

/** The outputs of a form for an image; it takes one at a time. */
export async function logits(form, image) {
  const session = sessions[form];
  const outputs = await session.run({ [session.inputNames[0]]: image });
  return [...outputs[session.outputNames[0]].data];
}

/** Milliseconds for one image, averaged over a round, since the clocks of browsers are coarse. */
export async function milliseconds(form, image) {
  const start = performance.now();
  let runs = 0;
  for (; performance.now() - start < ROUND_MS; runs++) await logits(form, image);
  return (performance.now() - start) / runs;
}

/** The probabilities of logits. */
export function softmax(values) {
  const largest = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((one, other) => one + other);
  return powers.map((power) => power / sum);
}
