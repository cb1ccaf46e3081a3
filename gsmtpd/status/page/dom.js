// How is something put on the page? What strangers wrote comes as text only, never as HTML.

export const byId = (id) => document.getElementById(id);

// An element. What is in `properties` becomes attributes, but for `on…`: functions to be called.
// Children are elements or text; null and "" are left out.
export function element(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children);
}

export function drawn(name, properties = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), properties, children);
}

function filled(made, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== ""));
  return made;
}

// Say it only where it is something new: people listen to what changes.
export function say(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

// Text of strangers: it keeps its own direction, and cannot turn that of what stands beside it.
export const quoted = (text, properties = {}) => element("bdi", properties, printable(text));

// The same where there is little room: names of hosts and files, addresses and ids go on in the
// next line behind their own marks, and not in the middle of a word or of 192.0.2.1.
export function wrapped(text) {
  const parts = printable(text).replace(/[/_:=,@](?=\S)|\.(?=[a-z])/gi, "$&\0").split("\0");
  return element("bdi", {}, parts.flatMap((part, at) => (at ? [element("wbr"), part] : [part])));
}

// Control characters would be invisible, and those of direction would have it read otherwise.
// eslint-disable-next-line no-control-regex
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

export function printable(text) {
  return String(text ?? "").replace(INVISIBLE, "\u00b7");
}

// The same for text of many lines, which has tabs, too.
export const printableLines = (text) =>
  text.replace(INVISIBLE, (one) => (one === "\n" || one === "\t" ? one : "\u00b7"));

// A table of rows of cells. columns: [title, properties of its cells].
export function table(caption, columns, rows, nothing) {
  if (!rows.length) return element("p", { class: "quiet" }, nothing);
  const head = columns.map(([title, properties]) =>
    element("th", { scope: "col", ...properties }, title));
  const body = rows.map((cells) =>
    element("tr", {}, cells.map((cell, at) => element("td", columns[at][1], cell))));
  return element("table", { "aria-label": caption },
    element("thead", {}, element("tr", {}, head)), element("tbody", {}, body));
}
