// The draft on the server's disk: what was drawn is sent a moment after each stroke, one at a time, and
// named by its digest from then on. What could not be sent stays on the page, and the page says so.

const PAUSE_MS = 600;
const AGAIN_MS = 4000;

export class Refusal extends Error {
  constructor(status, { error = "", do: next = "", code = "" } = {}) {
    super([error, next].filter(Boolean).join(" "));
    this.status = status;
    this.code = code;
  }
}

const gone = () => "The review command has ended or was started again, so nothing more is saved. What you drew is "
  + `still here: leave this page open. Start the same command with --port ${location.port}, open its link in another `
  + "tab of this browser, log in there, then come back to this tab and press Try again.";

/** Takes over the session of whoever logged in anew in this browser. */
async function renew() {
  const answer = await fetch("/", { credentials: "same-origin", headers: { accept: "text/html" } });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const found = page.querySelector("meta[name=csrf]");
  if (!found) throw new Refusal(401, { error: gone(), code: "gone" });
  document.querySelector("meta[name=csrf]").content = found.content;
}

export async function ask(path, options = {}) {
  const csrf = document.querySelector("meta[name=csrf]").content;
  const headers = { ...options.headers, "x-csrf": csrf };
  const answer = await fetch(path, { ...options, headers, credentials: "same-origin", redirect: "error" });
  if (answer.ok) return answer.json();
  if (answer.status === 401 || answer.status === 403) throw new Refusal(answer.status, { error: gone(), code: "gone" });
  const isJson = (answer.headers.get("content-type") || "").startsWith("application/json");
  throw new Refusal(answer.status, isJson ? await answer.json() : { error: await answer.text() });
}

export class Drafts {
  /** file() gives the mask, sha256 names what the server has, told(state, error) hears how it stands. */
  constructor({ file, sha256, told }) {
    this.file = file;
    this.sha256 = sha256;
    this.told = told;
    this.drawn = 0; // strokes so far, and those that the server has
    this.kept = 0;
    this.sending = null;
    this.timer = 0;
    this.stopped = false;
  }

  get clean() { return this.drawn === this.kept; }

  /** A stroke was drawn or taken back. */
  touch() {
    this.drawn += 1;
    this.told("unsaved");
    this.#later(PAUSE_MS);
  }

  /** Sends what is not sent yet; resolves when the server has all of it, rejects with why not. */
  async flush() {
    clearTimeout(this.timer);
    while (!this.clean) {
      this.sending ??= this.#send().finally(() => { this.sending = null; });
      await this.sending;
    }
  }

  /** Sends again after a new session, once there is one. */
  async again() {
    try {
      await renew();
      this.stopped = false;
      await this.flush();
    } catch (error) {
      this.told("failed", error instanceof Refusal ? error : new Refusal(0, { error: gone(), code: "gone" }));
    }
  }

  #later(ms) {
    clearTimeout(this.timer);
    if (this.stopped) return;
    this.timer = setTimeout(() => { this.flush().catch(() => {}); }, ms);
  }

  async #send() {
    const drawn = this.drawn;
    try {
      const body = await this.file();
      const { sha256 } = await ask("/draft", {
        method: "PUT", body, headers: { "if-match": `"${this.sha256}"`, "content-type": "application/octet-stream" },
      });
      this.sha256 = sha256;
      this.kept = drawn;
      this.told(this.clean ? "kept" : "unsaved");
    } catch (error) {
      const lasting = error instanceof Refusal && error.status !== 503;
      this.stopped = lasting;
      this.told("failed", error instanceof Refusal ? error : new Refusal(0, { error: gone(), code: "gone" }));
      if (!lasting) this.#later(AGAIN_MS);
      throw error;
    }
  }
}
