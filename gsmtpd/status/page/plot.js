// How are numbers drawn? Strips below each other over one time axis, as a chart recorder has them.

import { drawn, element, say } from "./dom.js";
import { NONE, clock } from "./format.js";

const AXIS = 22; // pixels that the times need
const FLAG = 60; // pixels that the time of the cursor needs
const ABOVE = 12; // pixels above the highest line, for what is written at it

const STEPS = [1, 1.5, 2, 3, 4, 5, 6, 8, 10];

// The next of 1, 1.5, 2 … 8, 10, 15 … that is not less than `value`, in units of `least`.
export function ceiling(value, least) {
  const units = value / least;
  if (!(units > 1)) return least;
  const power = 10 ** Math.floor(Math.log10(units));
  return STEPS.find((factor) => factor * power >= units * 0.9999) * power * least;
}

export class Recorder {
  // strips: {title, unit, height, least, shown, big, legend}; see live.js.
  constructor(container, strips) {
    this.container = container;
    this.cursor = null; // seconds since 1970; null: now
    this.rows = [];
    this.span = 3600;
    this.strips = strips.map((strip) => this.#built(strip));
    this.axis = drawn("svg", { class: "axis", "aria-hidden": "true" });
    this.axisRow = element("div", { class: "strip times" }, element("div"), this.axis);
    container.replaceChildren(...this.strips.map((strip) => strip.node), this.axisRow);
    new ResizeObserver(() => this.draw()).observe(container);
    this.#listen();
  }

  #built(strip) {
    const parts = {
      number: element("span", { class: "number" }),
      unit: element("span", { class: "unit" }),
      legend: element("ul", { class: "legend" }),
      svg: drawn("svg", { role: "img" }),
    };
    const label = element("div", { class: "label" }, element("h3", {}, strip.title),
      element("p", { class: "value" }, parts.number, parts.unit), parts.legend);
    return { ...strip, ...parts, node: element("div", { class: "strip" }, label, parts.svg) };
  }

  #listen() {
    const at = (event) => {
      const box = this.axis.getBoundingClientRect();
      const part = (event.clientX - box.left) / box.width;
      this.point(part < 0 || part > 1 ? null : this.end - this.span * (1 - part));
    };
    this.container.addEventListener("pointermove", at);
    this.container.addEventListener("pointerdown", at);
    this.container.addEventListener("pointerleave", () => this.point(null));
    this.container.addEventListener("blur", () => this.point(null));
    this.container.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (steps) {
        event.preventDefault();
        this.point((this.cursor ?? this.end) + (steps * this.span) / 120);
      } else if (event.key === "Escape") this.point(null);
    });
  }

  point(time) {
    this.cursor = time === null || time >= this.end ? null : Math.max(time, this.end - this.span);
    this.draw();
  }

  show(rows, span) {
    this.rows = rows;
    this.span = span;
    this.draw();
  }

  get end() {
    return this.rows.at(-1)?.time ?? Date.now() / 1000;
  }

  draw() {
    const width = this.axis.parentNode.lastChild.getBoundingClientRect().width;
    if (!width) return; // not to be seen
    const x = (time) => width - ((this.end - time) / this.span) * width;
    const ticks = this.#ticks();
    const row = this.#pointed();
    for (const strip of this.strips) this.#drawStrip(strip, width, x, ticks, row);
    this.#drawAxis(width, x, ticks);
  }

  #pointed() {
    if (this.cursor === null) return null;
    const off = (row) => Math.abs(row.time - this.cursor);
    const nearer = (best, row) => (best && off(best) <= off(row) ? best : row);
    const best = this.rows.reduce(nearer, null);
    return best && off(best) < this.span / 60 ? best : { time: this.cursor };
  }

  #ticks() {
    const step = this.span > 600 ? 600 : 60;
    const ticks = [];
    const first = Math.ceil((this.end - this.span) / step) * step;
    for (let at = first; at <= this.end; at += step) ticks.push(at);
    return ticks;
  }

  #drawStrip(strip, width, x, ticks, row) {
    const { height } = strip;
    const rows = this.rows.filter((one) => one.time >= this.end - this.span);
    const series = strip.series(rows);
    const layers = stacked(series, rows, strip.isStacked);
    const highest = Math.max(0, ...layers.flatMap((layer) => layer.map(([, top]) => top ?? 0)));
    const top = ceiling(highest, strip.least);
    const y = (value) => ABOVE + (height - ABOVE - 1) * (1 - value / top);
    const across = (name, at, from) =>
      drawn("line", { class: name, x1: x(at), x2: x(at), y1: from, y2: height });
    const lines = ticks.map((at) => across("tick", at, ABOVE));
    lines.push(drawn("line", { class: "grid", x1: 0, x2: width, y1: y(top), y2: y(top) }));
    lines.push(drawn("line", { class: "base", x1: 0, x2: width, y1: y(0), y2: y(0) }));
    const shapes = series.flatMap((one, at) => shapesOf(one, layers[at], rows, x, y, this.span));
    const scale = drawn("text", { class: "scale", x: 2, y: ABOVE - 3 }, strip.scale(top));
    const cursor = row ? [across("cursor", row.time, 0)] : [];
    strip.svg.setAttribute("width", width);
    strip.svg.setAttribute("height", height);
    strip.svg.replaceChildren(...lines, ...shapes, scale, ...cursor);
    this.#label(strip, series, row ?? strip.now(), highest);
  }

  #label(strip, series, row, highest) {
    const [number, unit] = strip.big(row ?? {});
    say(strip.number, number);
    say(strip.unit, number === NONE ? "" : unit);
    const said = strip.scale(highest);
    const about = `${strip.title}: ${number} ${unit}; at most ${said} in the time shown`;
    strip.svg.setAttribute("aria-label", about);
    if (!strip.hasLegend) return;
    const items = series.map((one) => [one.tone, one.name, row ? strip.small(one.value(row)) : ""]);
    const have = strip.legend.children;
    const isOther = ([tone, name], at) => have[at].children[1].textContent !== name
      || have[at].firstChild.className !== `swatch ${tone}`;
    if (have.length !== items.length || items.some(isOther)) {
      strip.legend.replaceChildren(...items.map(([tone, name]) => element("li", {},
        element("span", { class: `swatch ${tone}` }), element("span", {}, name), element("b"))));
    }
    items.forEach(([, , value], at) => say(have[at].lastChild, value));
  }

  #drawAxis(width, x, ticks) {
    const inside = (at) => Math.min(Math.max(at, FLAG / 2), width - FLAG / 2);
    const flag = this.cursor === null ? -Infinity : inside(x(this.cursor));
    const text = (name, at, time, seconds) =>
      drawn("text", { class: name, x: at, y: 15, "text-anchor": "middle" }, clock(time, seconds));
    const isClear = (at) => at > 18 && at < width - 18 && Math.abs(at - flag) > 52;
    const shown = ticks.filter((time) => isClear(x(time)));
    const texts = shown.map((time) => text("scale", x(time), time, false));
    if (this.cursor !== null) {
      const box = { class: "flag", x: flag - FLAG / 2, y: 2, width: FLAG, height: 18, rx: 2 };
      texts.push(drawn("rect", box), text("flag-text", flag, this.cursor, true));
    }
    this.axis.setAttribute("width", width);
    this.axis.setAttribute("height", AXIS);
    this.axis.replaceChildren(...texts);
  }
}

// For each series its [bottom, top] at each row; top is null where nothing was measured.
function stacked(series, rows, isStacked) {
  const below = rows.map(() => 0);
  return series.map((one) => rows.map((row, at) => {
    const value = one.value(row);
    if (value === null || value === undefined) return [0, null];
    const bottom = isStacked ? below[at] : 0;
    below[at] += value;
    return [bottom, bottom + value];
  }));
}

// The line of a series, and the area below it; both have gaps where there is no sample.
function shapesOf(one, layer, rows, x, y, span) {
  const runs = [];
  let last = -Infinity;
  rows.forEach((row, at) => {
    const [bottom, top] = layer[at];
    if (top === null) return;
    if (row.time - last > span / 100) runs.push([]);
    last = row.time;
    runs.at(-1).push([x(row.time).toFixed(1), y(top).toFixed(1), y(bottom).toFixed(1)]);
  });
  const along = (points) => points.map(([a, b]) => `${a} ${b}`).join("L");
  const back = (run) => along(run.map(([a, , c]) => [a, c]).reverse());
  const line = runs.map((run) => `M${along(run)}${run.length === 1 ? "h1" : ""}`);
  const area = runs.map((run) => `M${along(run)}L${back(run)}Z`);
  const shapes = [];
  if (one.isFilled) shapes.push(drawn("path", { class: `area ${one.tone}`, d: area.join("") }));
  if (!one.isStacked) shapes.push(drawn("path", { class: `line ${one.tone}`, d: line.join("") }));
  return shapes;
}
