// How does it do? The plots, what is to be known beside them, sessions, and one sentence on top.

import { Stream, again, asked } from "./api.js";
import { byId, element, say, table, wrapped } from "./dom.js";
import { clock, count, delay, joined, lasting, many, octets, rate, when } from "./format.js";
import { facts, problemsOf } from "./facts.js";
import { Recorder } from "./plot.js";
import { STEPS, Samples } from "./samples.js";

const LEADERS = 5; // reasons that have a colour; the others have one together
const STATUS_EACH = 5000; // milliseconds
const SESSIONS_EACH = 2000;
const SILENCE = 6000; // milliseconds; there is a sample each second
const HOUR = 3600; // seconds
const MINUTES = 300;
const SHORT = 600; // seconds of history that would be lost in the plot of an hour
const SPAN = "gsmtpd-span"; // what a person chose, in this browser

const samples = new Samples();
let span = HOUR;
let isChosen = false; // by a person
let status = null;
let recorder = null;
let isStale = true; // there is a gap behind the last sample
let problems = null; // what is wrong, each in a sentence; null before it is known
let isLost = false; // nobody answers: what was known is old

const short = (value) => Number(value.toPrecision(3)).toLocaleString("en");
const column = (name) => (row) => row[name];
const ratio = (above, below) => (row) => (row[below] > 0 ? row[above] / row[below] : null);
const now = () => samples.lately(10);

function strip(title, unit, tone, value, more = {}) {
  return {
    title, height: 64, least: 1, now, isStacked: false, hasLegend: false,
    scale: short, small: rate, big: (row) => [rate(value(row)), unit],
    series: () => [{ name: title, tone, value, isFilled: true }], ...more,
  };
}

const COLOURS = [0, 1, 2, 3, 4, 5].map((number) => `reason-${number}`);
// Reasons keep their colours while the page is open, whichever leads.
const tones = new Map();

function reasons(rows) {
  const sums = new Map();
  for (const row of rows) {
    for (const [name, value] of Object.entries(row)) {
      if (name.startsWith("refused:") && value) sums.set(name, (sums.get(name) ?? 0) + value);
    }
  }
  const names = [...sums.keys()].sort((a, b) => sums.get(b) - sums.get(a));
  const leaders = names.slice(0, names.length > LEADERS + 1 ? LEADERS : LEADERS + 1);
  const rest = names.slice(leaders.length);
  for (const name of leaders) toneOf(name, leaders);
  const order = [...tones.keys()]; // two that are even would change places each second
  leaders.sort((a, b) => order.indexOf(a) - order.indexOf(b));
  const series = leaders.map((name) => ({
    name: name.slice(8).replaceAll("_", " "), tone: tones.get(name), value: column(name),
    isFilled: true, isStacked: true,
  }));
  const others = (row) => rest.reduce(
    (sum, name) => (name in row ? (sum ?? 0) + row[name] : sum), undefined);
  if (rest.length) {
    series.push({
      name: "others", tone: "reason-rest", value: others, isFilled: true, isStacked: true,
    });
  }
  return series;
}

function toneOf(name, leaders) {
  if (tones.has(name)) return;
  const taken = new Set(leaders.map((one) => tones.get(one)));
  const free = COLOURS.find((tone) => !taken.has(tone));
  for (const [other, tone] of tones) if (tone === free) tones.delete(other);
  tones.set(name, free);
}

// All refusals of a row; undefined where it has none of the columns: nothing is known yet.
const refused = (row) => Object.entries(row).filter(([name]) => name.startsWith("refused:"))
  .reduce((sum, [, value]) => (sum ?? 0) + value, undefined);

function strips() {
  const inUnit = (write) => {
    const said = (value) => joined(write(value));
    return { scale: said, small: said };
  };
  return [
    strip("Mail", "a second", "accepted", column("accepted"), {
      height: 132, hasLegend: true,
      series: () => [
        { name: "accepted", tone: "accepted", value: column("accepted"), isFilled: true },
        { name: "refused after DATA", tone: "refused", value: column("refused") },
        { name: "discarded", tone: "discarded", value: column("discarded") },
      ],
    }),
    strip("Refusals", "a second", "refused", refused, {
      height: 132, hasLegend: true, isStacked: true, series: reasons, least: 0.5,
    }),
    strip("Commit, 95th percentile", "", "latency", column("commit_p95"), {
      least: 0.001, big: (row) => delay(row.commit_p95), ...inUnit(delay),
    }),
    strip("Rows in a commit", "", "batch", ratio("batch_rows", "commits")),
    strip("Sessions", "open", "sessions", column("clients"), {
      least: 5, big: (row) => [count(row.clients), "open"], scale: count,
    }),
    strip("Queue", "mails wait", "queue", column("queue"), {
      least: 5, big: (row) => [count(row.queue), "mails wait"], scale: count,
    }),
    strip("Memory of mail under way", "", "memory", column("memory"), {
      least: 1 << 20, big: (row) => octets(row.memory), ...inUnit(octets),
    }),
  ];
}

// ---- what is asked -----------------------------------------------------------------------------

async function fill() {
  isStale = false;
  try {
    const [fine, coarse] = await Promise.all(Object.entries(STEPS).map(([seconds, step]) =>
      asked("api/history", { seconds, step })));
    samples.fill(MINUTES, fine);
    samples.fill(HOUR, coarse);
    if (!isChosen) choose(samples.reach < SHORT ? MINUTES : HOUR);
    isChosen = true; // it does not jump while somebody looks
    draw();
  } catch {
    isStale = true; // the stream says so when it is back
  }
}

function choose(seconds) {
  span = seconds;
  for (const one of byId("spans").elements) one.checked = Number(one.value) === span;
}

// What a person chose when the page was here last, or null.
function remembered() {
  try {
    return [HOUR, MINUTES].find((one) => String(one) === localStorage.getItem(SPAN)) ?? null;
  } catch {
    return null; // the browser keeps nothing
  }
}

function remember() {
  try {
    localStorage.setItem(SPAN, String(span));
  } catch { /* as above */ }
}

function draw() {
  recorder.show(samples.shown(span), span);
  const lately = now();
  if (isLost) say(byId("sentence"), lastHeard());
  else if (lately) say(byId("sentence"), sentence(lately));
}

const lastHeard = () => (samples.last
  ? `The server last answered at ${when(samples.last.time)}.` : "The server has not answered yet.");

function sentence(row) {
  if (status?.state === "stopping") return "The server is stopping: it takes no new mail.";
  const accepted = row.accepted >= 0.05
    ? `Taking ${rate(row.accepted)} mails a second` : "No mail comes in at the moment";
  const away = refused(row);
  return `${accepted}${away >= 0.05 ? `, refusing ${rate(away)}` : ""}.`;
}

async function lookAtStatus() {
  try {
    status = await asked("api/status");
  } catch (error) {
    problems = [error.message];
    showProblems();
    return;
  }
  const since = lasting(Date.now() / 1000 - status.began);
  say(byId("server-facts"), `version ${status.version}, up ${since}`);
  problems = problemsOf(status);
  showProblems();
  byId("facts").replaceChildren(...facts(status));
}

function showProblems() {
  const list = byId("problems");
  const [tone, said, texts] = verdict();
  if ([...list.children].map((item) => item.textContent).join("\n") === texts.join("\n")) return;
  list.className = tone;
  list.replaceChildren(...texts.map((text) => element("li", {}, text)));
  document.title = said ? `gsmtpd: ${said}` : "gsmtpd";
}

// [class of the list, what the title says, sentences].
function verdict() {
  if (isLost) return ["unknown", "no contact", ["Whether anything is wrong is not known."]];
  if (!problems) return ["unknown", "", []];
  if (problems.length) return ["bad", many(problems.length, "problem"), problems];
  return ["good", "all is well", ["Nothing is wrong."]];
}

// From now on somebody answers, or nobody: then nothing is said of now.
export function contact(isThere) {
  if (isLost === !isThere) return;
  isLost = !isThere;
  problems = null; // what was wrong before may be mended
  showProblems();
  if (isThere) lookAtStatus(); // and the next sample draws
  else draw();
}

async function lookAtSessions() {
  let found;
  try {
    found = await asked("api/sessions");
  } catch {
    return; // the line on top says that nobody answers
  }
  const [number, wide] = [{ class: "right" }, { class: "wide" }];
  byId("sessions").replaceChildren(table("Sessions now", [
    ["Client", {}], ["For", number], ["What it does", { class: "doing" }], ["Mails", number],
    ["Sent", { class: "right wide" }], ["TLS", wide],
  ], found.sessions.map((one) => [
    wrapped(one.client), lasting(one.seconds), wrapped(one.doing), count(one.messages),
    joined(octets(one.octets)), one.tls ? "yes" : "no",
  ]), "Nobody is connected."));
  byId("slowest").replaceChildren(table("Slowest in the last minute", [
    ["At", {}], ["Took", number], ["Client", {}], ["Size", number],
    ["Reply", { class: "reply wide" }],
  ], found.slowest.map((one) => [
    clock(one.time), joined(delay(one.delay)), wrapped(one.client), joined(octets(one.size)),
    wrapped(one.reply),
  ]), "No mail in the last minute."));
}

// Start all of this; isShown: whether the view is on the screen.
export function start(isShown, onConnection) {
  recorder = new Recorder(byId("strips"), strips());
  byId("spans").addEventListener("change", (event) => {
    choose(Number(event.target.value));
    isChosen = true;
    remember();
    draw();
  });
  const last = remembered();
  isChosen = last !== null;
  choose(last ?? HOUR);
  const isSeen = () => isShown() && !document.hidden;
  document.addEventListener("visibilitychange", () => isSeen() && draw());
  fill();
  new Stream("api/live", "sample", (sample) => {
    if (samples.last && sample.time - samples.last.time > 3) isStale = true; // the machine slept
    samples.add(sample);
    if (isStale) fill();
    if (isSeen()) draw();
  }, {
    onOpen: () => onConnection(true),
    onLost: () => {
      isStale = true;
      onConnection(false);
    },
    silence: SILENCE,
  });
  again(STATUS_EACH, () => !document.hidden, lookAtStatus);
  again(SESSIONS_EACH, isSeen, lookAtSessions);
}

export const redraw = () => recorder && draw();
