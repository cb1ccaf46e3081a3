// What does one mail say? Its text, its HTML in a frame that may do nothing, headers, and files.

import { asked, fetched } from "./api.js";
import { byId, element, printable, printableLines, quoted, table } from "./dom.js";
import { joined, many, octets, when } from "./format.js";
import { linked } from "./links.js";

const RAW = 256 * 1024; // octets that are shown of a mail as it came

let current = ""; // the id of the mail that is shown, or being fetched
let deleted = () => {};

// Call `listener` with the id of a mail that was deleted here.
export function onDeleted(listener) {
  deleted = listener;
}

// Show the mail `id`, or none where it is ""; back: the address of the list.
export async function show(id, back) {
  current = id;
  const letter = byId("letter");
  if (!id) {
    letter.replaceChildren(hint("Choose a mail, and it is shown here."));
    return;
  }
  letter.replaceChildren(hint("Fetching the mail…"));
  try {
    const mail = await asked(`api/mails/${encodeURIComponent(id)}`);
    if (current !== id) return;
    letter.replaceChildren(...shown(mail, back).filter(Boolean));
  } catch (error) {
    if (current !== id) return;
    letter.replaceChildren(link(back), element("p", { class: "problem" }, error.message));
  }
  letter.focus({ preventScroll: true });
  if (matchMedia("(max-width: 52rem)").matches) scrollTo(0, 0);
}

const hint = (text) => element("p", { class: "quiet hint" }, text);
const link = (back) => element("a", { class: "back", href: back }, "Back to the list");

function shown(mail, back) {
  const remove = element("button", {
    type: "button", class: "plain danger", onclick: () => ask(mail),
  }, "Delete…");
  const whole = element("a", {
    class: "button plain", href: `api/mails/${mail.id}/raw`, download: `${mail.id}.eml`,
  }, "Download");
  return [
    link(back),
    element("div", { class: "title" },
      element("h2", {}, quoted(mail.subject || "No subject")),
      element("div", { class: "buttons" }, whole, remove)),
    factsOf(mail), filesOf(mail),
    mail.unreadable ? element("p", { class: "problem" }, printable(mail.unreadable)) : null,
    ...tabs(mail),
  ];
}

// Whether it was stored for another address than it was sent to.
function isElsewhere({ to, recipient }) {
  return Boolean(to && recipient) && to.toLowerCase() !== recipient.toLowerCase();
}

function factsOf(mail) {
  const way = `${mail.ip_addr || "an unknown address"}${mail.helo ? ` as ${mail.helo}` : ""}`;
  const rows = [
    ["From", mail.from_name ? `${mail.from_name} <${mail.from}>` : mail.from],
    ["To", mail.recipient || mail.to],
    isElsewhere(mail) ? ["Mailbox", mail.to] : null,
    mail.return_path !== mail.from ? ["Return path", mail.return_path || "<> (none)"] : null,
    ["Came", `${when(new Date(mail.date) / 1000)}, ${joined(octets(mail.size))}`],
    ["By", `${printable(way)}, ${mail.tls ? "with TLS" : "without TLS"}`],
    ["Id", `${mail.id}, ${mail.hash}`],
  ];
  return element("dl", { class: "envelope" }, rows.filter(Boolean).flatMap(([name, value]) =>
    [element("dt", {}, name), element("dd", {}, quoted(value))]));
}

function filesOf(mail) {
  if (!mail.attachments.length) return null;
  const items = mail.attachments.map((one) => {
    const name = printable(one.filename) || `attachment ${one.number}`;
    const address = `api/mails/${mail.id}/attachments/${one.number}`;
    const about = `${one.content_type}, ${joined(octets(one.size))}`;
    return element("li", {},
      element("a", { href: address, download: name }, element("bdi", {}, name)),
      element("span", { class: "quiet" }, quoted(about)));
  });
  return element("ul", { class: "files", "aria-label": many(items.length, "attachment") }, items);
}

// ---- the ways to look at it --------------------------------------------------------------------

function tabs(mail) {
  const ways = [
    ["Text", () => text(mail.text || "", mail.has_html
      ? "No text is found at the beginning of its HTML." : "It has no text.")],
    mail.has_html ? ["HTML", () => frame(mail)] : null,
    ["Headers", () => headers(mail)],
    ["Raw", () => raw(mail)],
  ].filter(Boolean);
  const first = mail.has_html && !(mail.text || "").trim() ? 1 : 0;
  const panel = element("div", { class: "panel", role: "tabpanel", id: "panel", tabindex: "0" });
  const buttons = ways.map(([name, make], at) => element("button", {
    type: "button", role: "tab", id: `tab-${name.toLowerCase()}`, "aria-controls": "panel",
    onclick: () => choose(at, make),
  }, name));
  async function choose(at, make) {
    buttons.forEach((one, number) => {
      one.setAttribute("aria-selected", String(number === at));
      one.tabIndex = number === at ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", buttons[at].id);
    panel.dataset.way = ways[at][0].toLowerCase();
    const made = await make();
    if (buttons[at].getAttribute("aria-selected") === "true") panel.replaceChildren(made);
  }
  const list = element("div", {
    role: "tablist", class: "tabs", "aria-label": "Ways to look at it",
  }, buttons);
  list.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const at = buttons.indexOf(document.activeElement) + step + buttons.length;
    const other = buttons[at % buttons.length];
    other.focus();
    other.click();
  });
  choose(first, ways[first][1]);
  return [list, panel];
}

function text(said, nothing) {
  if (!said.trim()) return element("p", { class: "quiet" }, nothing);
  return element("pre", { dir: "auto" }, linked(said));
}

function frame(mail) {
  // An empty sandbox: no scripts, no forms, no windows, an origin of its own.
  return element("iframe", {
    sandbox: "", referrerpolicy: "no-referrer", src: `api/mails/${mail.id}/html`,
    title: "The mail's HTML",
  });
}

function headers(mail) {
  return table("Header fields", [["Field", {}], ["Says", { class: "says" }]],
    mail.headers.map(([name, value]) => [quoted(name), quoted(value)]), "It has no header.");
}

async function raw(mail) {
  let octetsOfIt;
  try {
    octetsOfIt = new Uint8Array(await (await fetched(`api/mails/${mail.id}/raw`)).arrayBuffer());
  } catch (error) {
    return element("p", { class: "problem" }, error.message);
  }
  const head = new TextDecoder().decode(octetsOfIt.subarray(0, RAW)).replaceAll("\r\n", "\n");
  const isCut = octetsOfIt.length > RAW;
  const whole = joined(octets(octetsOfIt.length));
  const cut = `These are the first ${joined(octets(RAW))} of ${whole}.`;
  return element("div", {},
    isCut ? element("p", { class: "quiet" }, cut) : null,
    element("pre", { class: "raw" }, printableLines(head)));
}

// ---- deleting ----------------------------------------------------------------------------------

function ask(mail) {
  const dialog = byId("sure");
  const what = element("b", {}, quoted(mail.subject || "this mail"));
  byId("sure-text").replaceChildren("Delete ", what, ", for good?");
  byId("sure-no").onclick = () => dialog.close();
  byId("sure-yes").onclick = async () => {
    dialog.close();
    try {
      await fetched(`api/mails/${mail.id}`, { method: "DELETE" });
    } catch (error) {
      if (error.status !== 404) {
        byId("letter").prepend(element("p", { class: "problem", role: "alert" }, error.message));
        return;
      }
    }
    deleted(String(mail.id));
  };
  dialog.showModal();
}
