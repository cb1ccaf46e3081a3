// Where does plain text name pages of the web? Strangers wrote it: what is no such name stays text.

import { element, printableLines } from "./dom.js";

const MOST = 1000; // links of one mail; those behind are text
const LONGEST = 2000; // characters; what is longer is text
// Up to a space, a quote, a bracket of <https://…>, or what is not to be seen or turns text round.
const NAME = /\bhttps?:\/\/[^\s<>"`{}|\\^\p{Cc}\p{Cf}]+/giu;
const END = ".,;:!?'*_~\u2019\u201d\u00bb\u2026"; // these end a sentence rather than a name
const PAIRS = { ")": "(", "]": "[" };

// The text as printable nodes: text, and links that tell the page they lead to nothing of this one.
export function linked(text) {
  const nodes = [];
  let done = 0;
  for (const { 0: name, index } of text.matchAll(NAME)) {
    if (nodes.length >= 2 * MOST) break;
    const said = name.length > LONGEST ? "" : withoutEnd(name);
    const url = parsed(said);
    if (!url) continue;
    nodes.push(printableLines(text.slice(done, index)), element("a", {
      href: url.href, target: "_blank", rel: "noopener noreferrer nofollow",
    }, said));
    done = index + said.length;
  }
  return [...nodes, printableLines(text.slice(done))];
}

// Without what ends the sentence, or the bracket around it: (as in "see …/a_(b)).").
function withoutEnd(name) {
  const numbers = {};
  for (const one of name) numbers[one] = (numbers[one] ?? 0) + 1;
  let end = name.length;
  for (; end; end -= 1) {
    const last = name[end - 1];
    const isOdd = last in PAIRS && numbers[last] > (numbers[PAIRS[last]] ?? 0);
    if (!isOdd && !END.includes(last)) break;
    numbers[last] -= 1;
  }
  return name.slice(0, end);
}

function parsed(said) {
  try {
    const url = new URL(said);
    return ["http:", "https:"].includes(url.protocol) ? url : null;
  } catch {
    return null;
  }
}
