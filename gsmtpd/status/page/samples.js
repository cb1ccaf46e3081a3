// What was measured? The last five minutes by the second, the last hour by ten seconds.

const OF_NOW = new Set(["time", "clients", "queue", "memory"]);
const HIGHEST = new Set(["commit_p95"]);
export const STEPS = { 300: 1, 3600: 10 };

export class Samples {
  constructor() {
    this.rows = { 300: [], 3600: [] };
    this.filledTo = -Infinity; // the end of the last ten seconds that the server has summed up
  }

  // Take a history as the server answers it: columns, and rows of values. What was before it
  // stays: a server that was just started knows less than we do.
  fill(span, { columns, rows }) {
    const named = (row) => Object.fromEntries(columns.map((name, at) => [name, row[at]]));
    const told = rows.map(named);
    const first = told[0]?.time ?? Infinity;
    const last = (told.at(-1) ?? this.rows[span].at(-1))?.time ?? -Infinity;
    const older = this.rows[span].filter((row) => row.time < first && row.time >= last - span);
    this.rows[span] = [...older, ...told];
    if (span === 3600) this.filledTo = last;
  }

  // The rows that are drawn. The last one is what `lately` says, whichever the span is: there is
  // no number beside a plot that is not in it.
  shown(span) {
    const rows = this.rows[span];
    if (span === 300 || !this.last) return rows;
    const { time } = this.last;
    return [...rows.filter((row) => row.time < time), this.lately(10)];
  }

  // For how many seconds there are samples.
  get reach() {
    const first = this.rows[3600][0] ?? this.rows[300][0];
    return first ? this.last.time - first.time : 0;
  }

  // Take what the last second was.
  add(sample) {
    const fine = this.rows[300];
    if (fine.length && sample.time <= fine.at(-1).time) return;
    fine.push(sample);
    while (fine[0].time < sample.time - 300) fine.shift();
    this.#addCoarse(sample);
  }

  #addCoarse(sample) {
    const step = STEPS[3600];
    const end = Math.ceil(sample.time / step) * step;
    const begin = Math.max(end - step, this.filledTo);
    const coarse = this.rows[3600];
    if (coarse.length && coarse.at(-1).time > begin) coarse.pop(); // the one it belongs to
    const within = this.rows[300].filter((row) => row.time > begin);
    coarse.push(together(within));
    while (coarse[0].time < sample.time - 3600) coarse.shift();
  }

  get last() {
    return this.rows[300].at(-1) ?? null;
  }

  // The mean of the last so many seconds.
  lately(seconds) {
    const last = this.last;
    return last && together(this.rows[300].filter((row) => row.time > last.time - seconds));
  }
}

function together(rows) {
  const found = {};
  for (const name of Object.keys(rows.at(-1) ?? {})) {
    const values = rows.map((row) => row[name]).filter((value) => (value ?? null) !== null);
    if (!values.length) found[name] = null;
    else if (OF_NOW.has(name)) found[name] = values.at(-1);
    else if (HIGHEST.has(name)) found[name] = Math.max(...values);
    else found[name] = values.reduce((sum, value) => sum + value, 0) / values.length;
  }
  return found;
}
