const SVG = new Set(["svg", "rect", "circle", "polyline"]);

/** A new element of HTML or SVG, with attributes and children. */
export function element(name, attributes = {}, ...children) {
  const made = SVG.has(name)
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
