// Which mail is there? Search, the list, and what is new in it by itself.

import { Stream, asked, query } from "./api.js";
import { byId, element, printable, quoted, say } from "./dom.js";
import { joined, many, octets, whenLong, whenShort } from "./format.js";
import * as letter from "./letter.js";

const FIELDS = ["to", "from", "subject", "text", "since", "until"];
const AT_ONCE = 50; // mails that are asked for
const NAMED = { names: true }; // with the names of who they are from
const MOST = 500; // rows of the list that new mail may make
const NEWS_EACH = 250; // milliseconds between two changes of the list
const SPOKEN_EACH = 5000; // the same for what is read aloud

let wanted = null; // as in the address: what is searched for
let mails = [];
let next = null; // cursor
let isCut = false; // there were too many, and the last ones are gone
let shownId = "";
let stream = null;
let search = null; // AbortController
let news = [];
let newsTimer = null;
let spokenAt = 0;

// ---- the address -------------------------------------------------------------------------------

const trimmed = (parameters) => Object.fromEntries(
  FIELDS.map((name) => [name, (parameters.get(name) ?? "").trim()]).filter(([, value]) => value));

const addressOf = (id, found) => `#mail${id ? `/${id}` : ""}${query(found)}`;

// What the API is asked for: a domain has a parameter of its own, times are UTC.
function asParameters(found) {
  const parameters = { ...found };
  if (found.to && (found.to.startsWith("@") || !found.to.includes("@"))) {
    delete parameters.to;
    parameters.domain = found.to.replace(/^@/, "");
  }
  for (const name of ["since", "until"]) {
    const at = new Date(found[name]);
    if (found[name] && !Number.isNaN(at.getTime())) {
      parameters[name] = `${at.toISOString().slice(0, 19)}Z`;
    }
  }
  return parameters;
}

// Show this view: the mail `id` ("" for none), and what `parameters` search for.
export function show(id, parameters) {
  const found = trimmed(parameters);
  if (JSON.stringify(found) !== JSON.stringify(wanted) || !stream) {
    wanted = found;
    for (const name of FIELDS) byId("search").elements[name].value = found[name] ?? "";
    start();
  }
  if (id !== shownId || !id) {
    shownId = id;
    letter.show(id, addressOf("", wanted));
  }
  byId("mail").classList.toggle("reading", Boolean(id));
  mark();
}

// Another view is shown: nobody waits for new mail.
export function hide() {
  stream?.close();
  stream = null;
}

// ---- the list ----------------------------------------------------------------------------------

function start() {
  hide();
  [mails, next, isCut, news] = [[], null, false, []];
  byId("list").replaceChildren();
  follow();
  load({ limit: AT_ONCE });
}

async function load(more) {
  search?.abort();
  search = new AbortController();
  const { signal } = search;
  byId("more").disabled = true;
  if (!mails.length) inform("Searching…");
  try {
    const page = await asked("api/mails", { ...asParameters(wanted), ...NAMED, ...more },
      { signal });
    if (signal.aborted) return;
    next = page.next;
    put(page.mails);
  } catch (error) {
    if (error.name !== "AbortError") inform(error.message, true);
  } finally {
    if (!signal.aborted) byId("more").disabled = false;
  }
}

// Say above the list what there is, or what is wrong.
function inform(text, isWrong = false) {
  byId("found").className = isWrong ? "problem" : "quiet";
  say(byId("found"), text);
}

// The server is back, or the database: look what has come meanwhile. What was not answered before
// is asked again.
async function catchUp() {
  if (byId("found").className === "problem" && !mails.length) {
    load({ limit: AT_ONCE });
    return;
  }
  const asking = wanted;
  try {
    const page = await asked("api/mails", { ...asParameters(wanted), ...NAMED, limit: AT_ONCE });
    if (asking !== wanted || !stream) return;
    if (page.next && !page.mails.some((one) => mails.some(({ id }) => id === one.id))) {
      [mails, next, isCut] = [[], page.next, false]; // there are more between these and those
    }
    put(page.mails, true);
  } catch (error) {
    if (asking === wanted) inform(error.message, true);
  }
}

// Put mails into the list, which has the newest first.
function put(some, isNew = false) {
  const have = new Set(mails.map((one) => one.id));
  const fresh = some.filter((one) => !have.has(one.id));
  mails = [...mails, ...fresh].sort((a, b) => b.id - a.id);
  if (isNew && mails.length > MOST) {
    mails.length = AT_ONCE;
    isCut = true;
  }
  const rows = new Map([...byId("list").children].map((row) => [Number(row.dataset.id), row]));
  const marked = new Set(isNew ? fresh.map((one) => one.id) : []);
  const made = (one) => rows.get(one.id) ?? row(one, marked.has(one.id));
  byId("list").replaceChildren(...mails.map(made));
  mark();
  tell();
}

function row(mail, isNew) {
  const link = element("a", { href: addressOf(mail.id, wanted) },
    sender(mail),
    element("time", { datetime: mail.date, title: whenLong(mail.date) }, whenShort(mail.date)),
    quoted(mail.subject || "no subject", { class: mail.subject ? "what" : "what none" }),
    element("span", { class: "whom" }, quoted(mail.recipient || mail.to)),
    element("span", { class: "size" },
      mail.has_attach ? `${many(mail.has_attach, "file")}, ` : "", joined(octets(mail.size))));
  return element("li", { "data-id": mail.id, class: isNew ? "new" : null }, link);
}

// Who it says it is from. A name says anything: the address stands behind it.
function sender(mail) {
  const address = mail.from || mail.return_path || "nobody";
  const name = mail.from_name && mail.from_name !== address ? mail.from_name : "";
  const title = printable(name ? `${name} <${address}>` : address);
  return element("span", { title },
    quoted(name || address, { class: "who" }),
    ...(name ? [" ", quoted(address, { class: "whose" })] : []));
}

function mark() {
  for (const one of byId("list").children) {
    const isShown = one.dataset.id === shownId;
    if (isShown) one.firstChild.setAttribute("aria-current", "true");
    else one.firstChild.removeAttribute("aria-current");
    one.firstChild.setAttribute("href", addressOf(one.dataset.id, wanted));
  }
}

function tell() {
  const isAll = !next && !isCut;
  byId("more").hidden = isAll;
  const searched = Object.keys(wanted).length ? "found" : "stored";
  if (!mails.length) {
    const nothing = searched === "found" ? "No mail is like that" : "There is no mail yet";
    const more = "Nothing so far: there is more to look through.";
    inform(next ? more : `${nothing}. New mail appears by itself.`);
  } else if (isAll) {
    inform(`${many(mails.length, "mail")} ${searched}, the newest first`);
  }
  else inform(`The newest ${many(mails.length, "mail")} ${searched}`);
}

// ---- new mail ----------------------------------------------------------------------------------

const has = (text, part) => String(text ?? "").toLowerCase().includes(part.toLowerCase());

// What the stream does not look at, as far as the mail's facts tell.
function isWanted(mail) {
  const { from, subject, since, until } = wanted;
  return (!from || has(mail.from, from) || has(mail.return_path, from))
    && (!subject || has(mail.subject, subject))
    && (!since || new Date(mail.date) >= new Date(since))
    && (!until || new Date(mail.date) < new Date(until));
}

function follow() {
  let isLost = false;
  const { to, domain } = asParameters(wanted);
  if (wanted.text) {
    stream = { close() {} }; // what a mail says is not in the stream
    return;
  }
  stream = new Stream(`api/stream${query({ to, domain, most: 50 })}`, "mail", (mail) => {
    if (!isWanted(mail)) return;
    news.push(mail);
    if (news.length > MOST) news.splice(0, news.length - AT_ONCE);
    newsTimer ??= setTimeout(takeNews, NEWS_EACH);
  }, {
    onOpen: () => {
      if (isLost) catchUp();
      isLost = false;
    },
    onLost: () => {
      isLost = true;
    },
  });
}

function takeNews() {
  const taken = news;
  [news, newsTimer] = [[], null];
  if (!stream || !taken.length) return;
  put(taken, true);
  if (Date.now() - spokenAt > SPOKEN_EACH) {
    spokenAt = Date.now();
    const [last] = taken.slice(-1);
    const one = `New mail from ${last.from}: ${last.subject}`;
    say(byId("news"), taken.length === 1 ? one : many(taken.length, "new mail"));
  }
}

// ---- what people do ----------------------------------------------------------------------------

function submit(event) {
  event.preventDefault();
  const address = addressOf("", trimmed(new FormData(byId("search"))));
  if (address === location.hash) start(); // the same again: look once more
  else location.hash = address;
}

byId("search").addEventListener("submit", submit);
byId("search").addEventListener("reset", () => {
  location.hash = "#mail";
});
byId("fields").addEventListener("click", () => {
  const isOpen = byId("search").classList.toggle("open");
  byId("fields").setAttribute("aria-expanded", String(isOpen));
});
byId("more").addEventListener("click", () => {
  const more = isCut ? { limit: MOST } : { limit: AT_ONCE, before: next };
  isCut = false;
  load(more);
});
byId("list").addEventListener("keydown", (event) => {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const other = step && event.target.closest("li")?.[step];
  if (!other) return;
  event.preventDefault();
  other.firstChild.focus();
});
letter.onDeleted((id) => {
  mails = mails.filter((one) => String(one.id) !== id);
  byId("list").querySelector(`[data-id="${CSS.escape(id)}"]`)?.remove();
  location.hash = addressOf("", wanted);
  tell();
});
