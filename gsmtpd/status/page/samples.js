// What was measured? The last five minutes by the second, the last hour by ten seconds.

const OF_NOW = new Set(["time", "clients", "queue", "memory"]);
const HIGHEST = new Set(["commit_p95"]);
export const STEPS = { 300: 1, 3600: 10 };

export class Samples {
  constructor() {
    this.rows = { 300: [], 3600: [] };
  }

  // Take a history as the server answers it: columns, and rows of values.
  fill(span, { columns, rows }) {
    const named = (row) => Object.fromEntries(columns.map((name, at) => [name, row[at]]));
    this.rows[span] = rows.map(named);
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
    const coarse = this.rows[3600];
    if (coarse.length && coarse.at(-1).time > end - step) coarse.pop(); // the one it belongs to
    const within = this.rows[300].filter((row) => row.time > end - step);
    coarse.push(together(within));
    while (coarse[0].time < sample.time - 3600) coarse.shift();
  }

  get last() {
    return this.rows[300].at(-1) ?? this.rows[3600].at(-1) ?? null;
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
