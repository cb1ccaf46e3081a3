// What is there, and is any of it wrong? From what the server answers to /api/status.

import { element, wrapped } from "./dom.js";
import { count, delay, joined, lasting, many, octets, when } from "./format.js";

const WORDS = {
  max_clients: "There are as many connections as max_clients allows: others are sent away.",
  max_clients_per_ip: "Some address has as many connections as max_clients_per_ip allows.",
  max_memory: "Mail under way needs as much memory as max_memory allows: more is deferred.",
  "file descriptors": "The system gives no more files: nobody can connect.",
};

const isGone = (host) => host.away || host.answers === false;

const outboxOf = (status) => status.outbox?.counts ?? [];

// What should not be so, each in a sentence.
export function problemsOf(status) {
  const problems = [];
  const smtp = status.workers.filter((one) => (one.role ?? "smtp") === "smtp");
  if (status.state !== "stopping" && !smtp.some((one) => one.state === "serving")) {
    problems.push("No worker takes mail.");
  }
  for (const host of status.database ?? []) {
    if (isGone(host)) {
      const why = host.problem ? `: ${host.problem}` : "";
      problems.push(`The database ${host.host} does not answer${why}.`);
    }
    for (const risk of host.risks ?? []) problems.push(`The database ${host.host}: ${risk}.`);
  }
  for (const word of status.overload ?? []) {
    problems.push(WORDS[word] ?? `There is too little of ${word}.`);
  }
  const spool = status.spool;
  if (spool?.error) problems.push(`The spool cannot be read: ${spool.error}`);
  else if (spool?.messages) {
    problems.push(`${many(spool.messages, "mail")} in the spool: they wait for the database.`);
  }
  if (spool?.aside) {
    problems.push(`${many(spool.aside, "mail")} in the spool that the database refuses.`);
  }
  const dead = outboxOf(status).filter((one) => one.state === "dead");
  for (const one of dead) {
    problems.push(`The handler ${one.handler} was given up for ${many(one.number, "mail")}.`);
  }
  if (status.outbox?.error) problems.push(`The outbox cannot be read: ${status.outbox.error}`);
  if (status.reload && !status.reload.ok) {
    problems.push(`The last reload was refused: ${(status.reload.problems ?? []).join("; ")}`);
  }
  return problems;
}

function ledger(title, rows) {
  const lines = rows.map(([name, value, tone]) =>
    [element("dt", {}, name), element("dd", tone ? { class: tone } : {}, value)]);
  return element("section", {}, element("h2", {}, title), element("dl", {}, ...lines));
}

// What there is, as sections of names and values.
export function facts(status) {
  const parts = [
    ledger("Since the start", totals(status)),
    ledger("Listening", status.listeners.map((one) => [one.name, wrapped(one.address)])),
    ledger("Processes", [...status.workers.map(worker), ...replaced(status)]),
    ledger("Database", databases(status)),
  ];
  if (status.spool) parts.push(ledger("Spool", spool(status.spool)));
  const outbox = outboxOf(status);
  if (outbox.length) {
    parts.push(ledger("Outbox", outbox.map((one) =>
      [wrapped(one.handler), `${count(one.number)} ${one.state}`,
        one.state === "dead" ? "wrong" : ""])));
  }
  parts.push(ledger("Configuration", [
    ["file", wrapped(status.config)], ["reload", reload(status.reload)],
  ]));
  return parts;
}

function totals(status) {
  const away = (status.turned_away ?? 0) + (status.crowded ?? 0) + (status.denied ?? 0);
  const top = Object.entries(status.reasons ?? {}).filter(([, number]) => number)
    .sort((a, b) => b[1] - a[1]).slice(0, 5);
  return [
    ["accepted", many(status.accepted, "mail")],
    ["received", joined(octets(status.received_bytes))],
    ["discarded", count(status.discarded)],
    ["sent away", many(away, "connection")],
    ...top.map(([word, number]) => [`refused: ${word.replaceAll("_", " ")}`, count(number)]),
  ];
}

const ROLES = { smtp: "takes mail", handlers: "runs handlers", status: "this page" };

function worker(one) {
  const what = ROLES[one.role ?? "smtp"] ?? one.role;
  const memory = one.rss ? `, ${joined(octets(one.rss))}` : "";
  const state = one.state === "serving" ? lasting(one.seconds) : one.state;
  return [`${what} (${one.pid})`, `${state}${memory}`];
}

const replaced = (status) =>
  (status.replaced ? [["died, and replaced", count(status.replaced), "wrong"]] : []);

function databases(status) {
  return (status.database ?? []).flatMap((one) => {
    if (isGone(one)) return [[wrapped(one.host), "does not answer", "wrong"]];
    const after = typeof one.seconds === "number" ? ` in ${joined(delay(one.seconds))}` : "";
    return [
      [wrapped(one.host), `answers${after}`],
      ...(one.version ? [["version", wrapped(one.version)]] : []),
      ...Object.entries(one.settings ?? {}).map(([name, value]) => [wrapped(name), wrapped(value)]),
    ];
  });
}

function spool(found) {
  if (found.error) return [["state", "cannot be read", "wrong"]];
  if (!found.messages) return [["state", "empty", ""]];
  const rows = [
    ["mails", count(found.messages), "wrong"],
    ["size", `${joined(octets(found.octets))} of ${joined(octets(found.most))}`],
  ];
  if (found.oldest) rows.push(["oldest", lasting(Date.now() / 1000 - found.oldest)]);
  return rows;
}

function reload(last) {
  if (!last) return "none yet";
  return `${last.ok ? "done" : "refused"} ${when(last.time)}`;
}
