// Elements and numbers. All text goes in as text: nothing here reads HTML.

/** Makes an element: h("a", {href, class, onclick}, "text", child, …). */
export function h(tag, props, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(props || {})) {
    if (v === undefined || v === null || v === false) continue;
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else if (k === "style") Object.assign(e.style, v);
    else if (k === "value" || k === "checked" || k === "disabled" || k === "hidden") e[k] = v;
    else e.setAttribute(k, v === true ? "" : v);
  }
  put(e, children);
  return e;
}

function put(e, children) {
  for (const c of children.flat(Infinity)) {
    if (c === undefined || c === null || c === false) continue;
    e.append(c);
  }
}

/** Replaces what is in an element. */
export function fill(e, ...children) {
  e.replaceChildren();
  put(e, children);
  return e;
}

export const chip = (state, word, title) => h("span", { class: "chip " + state, title }, word || words[state] || state);

/** What states are called. */
export const words = {
  live: "live", slow: "slow", silent: "silent", waiting: "waiting", learning: "learning", no_release: "no release", no_detector: "no detector",
  open: "open", confirmed: "confirmed", false_alarm: "false alarm", seen: "seen",
  queued: "queued", running: "running", done: "done", failed: "failed", cancelled: "cancelled",
  anomaly: "alarm", rejected: "rejected", disagreement: "disagreement", drift: "drift", release: "release", store: "store", lost: "lost frames", camera: "camera",
};

/** A number with three figures that say something. */
export function num(v) {
  if (v === undefined || v === null || Number.isNaN(v)) return "–";
  const a = Math.abs(v);
  if (a >= 1000) return v.toLocaleString("en", { maximumFractionDigits: 0 });
  return String(Number(v.toPrecision(3)));
}

export const percent = (v) => (v === undefined || v === null ? "–" : num(100 * v) + " %");

export function bytes(n) {
  if (!n) return "0 B";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const i = Math.min(Math.floor(Math.log2(n) / 10), units.length - 1);
  return num(n / 2 ** (10 * i)) + " " + units[i];
}

export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return s + "\u00a0s"; // nothing is broken within
  if (s < 3600) return Math.floor(s / 60) + "\u00a0min";
  if (s < 48 * 3600) return Math.floor(s / 3600) + "\u00a0h";
  return Math.floor(s / 86400) + "\u00a0d";
}

export const ago = (t) => (t ? span(Date.now() - new Date(t)) + "\u00a0ago" : "never");

/** A time of day, with its date where it is not today. */
export function when(t) {
  if (!t) return "–";
  const d = new Date(t), two = (n) => String(n).padStart(2, "0");
  const clock = `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
  if (d.toDateString() === new Date().toDateString()) return clock;
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${clock}`;
}

export const short = (digest) => (digest || "").slice(0, 12);
export const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

/** A list of facts: facts(["Release", x], …); rows without a value are left out. */
export function facts(...rows) {
  return h("dl", { class: "facts" }, rows.filter((r) => r && r[1] !== undefined && r[1] !== null && r[1] !== "").map(([k, v]) => [h("dt", {}, k), h("dd", { class: "num" }, v)]));
}

export function table(head, rows) {
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": head.filter(Boolean).map((c) => c.replace("#", "")).join(", ") },
    h("table", {},
      h("thead", {}, h("tr", {}, head.map((c) => h("th", { scope: "col", class: c.startsWith("#") && "num" }, c ? c.replace("#", "") : h("span", { class: "hidden-text" }, "actions"))))),
      h("tbody", {}, rows.map((r) => h("tr", { class: r.class }, (r.cells || r).map((c, i) => h("td", { class: head[i].startsWith("#") && "num" }, c)))))));
}
