// Brings a drawn digit to what the net was trained on. Scikit-learn's digits are NIST's: upright, 32 bits high and at most
// 20 wide in a bitmap of 32×32, with strokes of a width that leaves all of them about as much ink. Each of their 8×8
// pixels counts the bits of 4×4, from 0 to 16.

export const SIDE = 8;
const BITS = 32, WIDTH = 20, CELL = BITS / SIDE;
const INK = 312; // bits, on average

/** The 64 pixels, row by row, of strokes: lists of points [x, y] in any unit, y downwards. */
export function pixelsOf(strokes) {
  const digit = upright(strokes);
  let [thin, thick] = [1, 12];
  while (thick - thin > 0.1) {
    const pen = (thin + thick) / 2;
    if (inked(digit, pen).length < INK) thin = pen;
    else thick = pen;
  }
  const pixels = new Array(SIDE * SIDE).fill(0);
  for (const [x, y] of inked(digit, thick)) pixels[Math.floor(y / CELL) * SIDE + Math.floor(x / CELL)]++;
  return pixels;
}

/** The strokes, slanted until the top row of pixels and the bottom row begin below each other, as in NIST's digits. */
function upright(strokes) {
  const digit = fitted(strokes, WIDTH, BITS), bits = inked(digit, CELL);
  const left = (top) => Math.min(...bits.filter(([, y]) => y > top && y < top + CELL).map(([x]) => x));
  const lean = (left(0) - left(BITS - CELL)) / (BITS - CELL) || 0; // a dot and a dash have neither row
  return digit.map((stroke) => stroke.map(([x, y]) => [x + lean * y, y]));
}

/** The middles of the bits that a pen of a width inks as it follows the strokes. */
function inked(strokes, pen) {
  const lines = fitted(strokes, WIDTH - pen, BITS - pen).flatMap(linesOf);
  const bits = [];
  for (let y = 0.5; y < BITS; y++)
    for (let x = 0.5; x < BITS; x++) if (lines.some((line) => distance(x, y, line) <= pen / 2)) bits.push([x, y]);
  return bits;
}

/** The strokes in the middle of the bitmap, of this height, and squeezed if they would be wider than this width. */
function fitted(strokes, width, height) {
  const [xs, ys] = [0, 1].map((axis) => strokes.flat().map((point) => point[axis]));
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const down = height / (bottom - top || 1);
  const across = Math.min(down, width / (right - left || 1));
  const place = ([x, y]) => [(x - (left + right) / 2) * across + BITS / 2, (y - (top + bottom) / 2) * down + BITS / 2];
  return strokes.map((stroke) => stroke.map(place));
}

/** The lines between a stroke's points; the first is the first point itself. */
function linesOf(stroke) {
  return stroke.map((point, number) => [stroke[Math.max(number - 1, 0)], point]);
}

/** The distance of a point from a line. */
function distance(x, y, [[x1, y1], [x2, y2]]) {
  const [dx, dy] = [x2 - x1, y2 - y1];
  const along = ((x - x1) * dx + (y - y1) * dy) / (dx * dx + dy * dy || 1);
  const nearest = Math.max(0, Math.min(1, along));
  return Math.hypot(x - x1 - nearest * dx, y - y1 - nearest * dy);
}
