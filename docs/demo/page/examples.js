/** Points on an ellipse around (x, y), in degrees from the right, clockwise. */
const arc = (x, y, rx, ry, from, to) =>
  Array.from({ length: 25 }, (_, number) => {
    const angle = ((from + ((to - from) * number) / 24) * Math.PI) / 180;
    return [x + rx * Math.cos(angle), y + ry * Math.sin(angle)];
  });

/** Strokes of a digit of each kind, on a pad of 100×100. */
export const EXAMPLES = [
  [arc(50, 50, 22, 35, -90, 270)],
  [[[40, 28], [52, 15], [52, 85]]],
  [[...arc(50, 33, 20, 18, 190, 400), [30, 85], [74, 85]]],
  [[...arc(48, 32, 18, 17, 200, 450), ...arc(48, 67, 21, 18, 270, 520)]],
  [[[50, 15], [30, 58], [72, 58]], [[62, 36], [58, 86]]],
  [[[70, 15], [36, 15], [33, 46], ...arc(47, 64, 22, 21, 225, 490)]],
  [[...arc(66, 62, 35, 47, 250, 180), ...arc(50, 66, 19, 19, 180, 540)]],
  [[[30, 22], [70, 16], [48, 86]], [[36, 52], [70, 48]]],
  [[...arc(50, 33, 16, 18, 90, 450), ...arc(50, 68, 16, 17, 270, 630)]],
  [[...arc(50, 33, 19, 18, -20, 340), ...arc(46, 60, 23, 26, 0, 130)]],
];
