// How is the server asked? All paths are relative: the page may be behind a proxy, in a directory.

export class ApiError extends Error {
  constructor(text, status) {
    super(text);
    this.status = status;
  }
}

// With a password in the address of the page, what is relative to it would have one, too, and
// browsers refuse that.
const url = (path) => new URL(path, location.origin + location.pathname);

// The answer to a request, as it is or as JSON. Raises ApiError with a line for people.
export async function fetched(path, options = {}) {
  let answer;
  try {
    answer = await fetch(url(path), { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer.", 0);
  }
  if (answer.ok) return answer;
  let text = `The server answers ${answer.status} ${answer.statusText}.`;
  try {
    text = (await answer.json()).error || text;
  } catch { /* a proxy's own page says nothing more */ }
  throw new ApiError(text, answer.status);
}

export async function asked(path, parameters = {}, options = {}) {
  return (await fetched(path + query(parameters), options)).json();
}

export function query(parameters) {
  const set = Object.entries(parameters).filter(([, value]) => value !== "" && value != null);
  return set.length ? `?${new URLSearchParams(set)}` : "";
}

const PATIENCE = 5000; // milliseconds until a stream that was given up is asked for again

// Server-sent events that come back by themselves, also where the browser has given up, or waits
// for a server that is gone without a word. silence: milliseconds without an event that say so.
export class Stream {
  constructor(path, event, onData, { onOpen = () => {}, onLost = () => {}, silence = 0 } = {}) {
    Object.assign(this, { path, event, onData, onOpen, onLost, silence });
    this.open();
  }

  open() {
    this.source = new EventSource(url(this.path));
    this.#listen();
    this.source.addEventListener("open", () => {
      this.#listen();
      this.onOpen();
    });
    this.source.addEventListener(this.event, (message) => {
      this.#listen();
      this.onData(JSON.parse(message.data));
    });
    this.source.addEventListener("error", () => {
      this.onLost();
      if (this.source.readyState === EventSource.CLOSED) this.#again(PATIENCE);
    });
  }

  // From now on it may be silent for so long.
  #listen() {
    clearTimeout(this.timer);
    if (!this.silence) return;
    this.timer = setTimeout(() => {
      this.onLost();
      this.#again(0);
    }, this.silence);
  }

  #again(milliseconds) {
    this.close();
    this.timer = setTimeout(() => this.open(), milliseconds);
  }

  close() {
    clearTimeout(this.timer);
    this.source.close();
  }
}

// Call `look` now and every so many milliseconds, while `isWanted()`; one call at a time.
export function again(milliseconds, isWanted, look) {
  const round = async () => {
    if (isWanted()) await look();
    setTimeout(round, milliseconds);
  };
  round();
}
