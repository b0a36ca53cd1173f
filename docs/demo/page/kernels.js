// The weights of FC3 that lead to one output pixel, under the drawn digit: Figure 5 of the paper.

import { SIDE } from "./digit.js";
import { element } from "./element.js";

const PARTS = { trained: "FC3 as trained", convolutions: "merged convolutions", fused: "fused: the sum of both" };

/** Panels of the parts of a kernel, each with axes (input row, input column, output row, output column). */
export class Kernels {
  /** Within `container`, of what build.py tells of the net; calls `choose(row, column)` for a pixel that is clicked. */
  constructor(container, { kernels, colours, zero }, choose) {
    Object.assign(this, { kernels, colours, zero });
    const weights = Object.values(kernels).flat(4).filter((weight) => weight > 0);
    [this.least, this.most] = [Math.min(...weights), Math.max(...weights)];
    this.panels = Object.entries(PARTS).map(([part, title]) => {
      const svg = element("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, role: "img" });
      svg.addEventListener("click", ({ offsetX, offsetY }) => {
        choose(Math.floor((offsetY / svg.clientHeight) * SIDE), Math.floor((offsetX / svg.clientWidth) * SIDE));
      });
      container.append(element("figure", {}, element("figcaption", {}, title), svg));
      return { svg, part, title };
    });
  }

  /** Shows what the output pixel (row, column) sees, and the pixels of a digit. */
  show(row, column, pixels) {
    const [h, w] = [this.kernels.fused.length, this.kernels.fused[0].length];
    const [top, left] = [row - (row % h), column - (column % w)];
    for (const { svg, part, title } of this.panels) {
      const shapes = this.kernels[part].flatMap((line, y) =>
        line.map((weights, x) => square(left + x, top + y, { fill: this.colourOf(weights[row - top][column - left]) })),
      );
      for (let y = 0; y < SIDE; y += h)
        for (let x = 0; x < SIDE; x += w) shapes.push(square(x, y, { width: w, height: h, class: "partition" }));
      shapes.push(square(left, top, { width: w, height: h, class: "partition seen" }));
      pixels.forEach((count, place) => {
        const centre = { cx: (place % SIDE) + 0.5, cy: Math.floor(place / SIDE) + 0.5 };
        if (count) shapes.push(element("circle", { ...centre, r: 0.08 * Math.sqrt(count) }));
      });
      for (let line = 0; line < 2; line++) shapes.push(square(column, row, { class: "pixel" }));
      svg.setAttribute("aria-label", `${title}: the weights that lead to row ${row}, column ${column}`);
      svg.replaceChildren(...shapes);
    }
  }

  /** The colour of a weight, on a logarithmic scale. */
  colourOf(weight) {
    if (weight === 0) return this.zero;
    const share = Math.log(weight / this.least) / (Math.log(this.most / this.least) || 1);
    return this.colours[Math.round(share * (this.colours.length - 1))];
  }

  /** The scale of colours, and what it means. */
  scale() {
    const bar = (background, attributes) => element("i", { style: `background: ${background}`, ...attributes });
    return [
      ...[this.least.toPrecision(2), bar(`linear-gradient(to right, ${this.colours.join()})`)],
      ...[`${this.most.toPrecision(2)}, the root mean square over all channels`, bar(this.zero, { class: "zero" }), "none"],
    ];
  }
}

function square(x, y, attributes) {
  return element("rect", { x, y, width: 1, height: 1, ...attributes });
}
