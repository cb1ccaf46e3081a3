// Which view is shown? The part of the address behind "#": live, mail, mail/123, mail?to=…

import { byId, say } from "./dom.js";
import * as live from "./live.js";
import * as mail from "./mail.js";

const OFFLINE_AFTER = 2000; // milliseconds; a reload of the server takes less

let view = "live";
let timer = null;

function route() {
  const [path, search = ""] = location.hash.slice(1).split("?");
  const [name, id = ""] = path.split("/");
  if (name === "main") return; // the link that skips to the content
  view = name === "mail" ? "mail" : "live";
  for (const one of ["live", "mail"]) {
    byId(one).hidden = one !== view;
    const link = byId(`to-${one}`);
    if (one === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "mail") mail.show(id, new URLSearchParams(search));
  else {
    mail.hide();
    live.redraw();
  }
}

function connection(isThere) {
  const line = byId("offline");
  if (isThere) {
    clearTimeout(timer);
    timer = null;
    line.hidden = true;
    live.contact(true);
  }
  else {
    timer ??= setTimeout(() => {
      line.hidden = false;
      say(line, "The server does not answer. What you see is old; it is asked again and again.");
      live.contact(false);
    }, OFFLINE_AFTER);
  }
}

window.addEventListener("hashchange", route);
live.start(() => view === "live", connection);
route();
