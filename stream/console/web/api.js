// The API, by relative addresses: the page works below any path.
import { h } from "./dom.js";

/** An error that the server explains. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || `the server answers ${status}`);
    this.status = status;
    this.code = body.code;
  }
}

async function ask(method, path, body, headers) {
  let r;
  try {
    r = await fetch(path, {
      method, headers: { ...(body !== undefined && !(body instanceof FormData) ? { "Content-Type": "application/json" } : {}), ...headers },
      body: body === undefined || body instanceof FormData ? body : JSON.stringify(body),
    });
  } catch (e) {
    throw new Problem(0, { detail: "the console does not answer", code: "away" });
  }
  if (r.status === 204) return null;
  const text = await r.text();
  let v = {};
  try { v = JSON.parse(text); } catch { /* a proxy's page */ }
  if (!r.ok) {
    if (r.status === 401) dispatchEvent(new Event("nm-signed-out"));
    throw new Problem(r.status, v);
  }
  return v;
}

export const get = (path) => ask("GET", path);
export const post = (path, body) => ask("POST", path, body === undefined ? {} : body);
export const patch = (path, body, revision) => ask("PATCH", path, body, revision ? { "If-Match": `"${revision}"` } : {});
export const remove = (path) => ask("DELETE", path);

/** Says something at the foot of the page; action: [word, function]; ms 0: until it is removed. */
export function toast(text, { bad, action, ms = 6000 } = {}) {
  const e = h("div", { class: "toast" + (bad ? " bad" : "") }, h("span", {}, text));
  if (action) e.append(h("button", { onclick: () => { e.remove(); action[1](); } }, action[0]));
  document.getElementById("toasts").append(e);
  if (ms) setTimeout(() => e.remove(), ms);
  return e;
}

export const complain = (e) => {
  if (!(e instanceof Problem)) console.error(e);
  toast(e.message, { bad: true, ms: 10000 });
};

/** Runs an action of a button, and says what went wrong. */
export const doing = (f) => async (ev) => {
  const b = ev && ev.currentTarget;
  if (b && b.tagName === "BUTTON") b.disabled = true;
  try { await f(ev); } catch (e) { complain(e); } finally { if (b && b.tagName === "BUTTON") b.disabled = false; }
};
