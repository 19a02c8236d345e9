// The shell: pages by hash, the head, who is signed in.
import { fill, h, chip, plural } from "./dom.js";
import { complain, get, post, remove, toast } from "./api.js";
import * as live from "./live.js";
import * as bindings from "./keys.js";

const { keys } = bindings;
const pages = [
  ["wall", "Wall"], ["alarms", "Alarms"], ["detectors", "Detectors"], ["jobs", "Jobs"], ["health", "Health"], ["sinks", "Sinks"],
];
const modules = {
  wall: () => import("./wall.js"), camera: () => import("./camera.js"), alarms: () => import("./alarms.js"), detectors: () => import("./detectors.js"),
  d: () => import("./detector.js"), jobs: () => import("./jobs.js"), health: () => import("./health.js"), users: () => import("./users.js"),
  sinks: () => import("./sinks.js"), audit: () => import("./audit.js"),
};
export let me = null; // {user, role, version, open_to_all}
const ranks = ["nobody", "viewer", "operator", "admin"];
/** Says whether who is signed in has at least that role. */
export const may = (role) => ranks.indexOf(me?.role) >= ranks.indexOf(role);

const main = document.getElementById("main"), top_ = document.getElementById("top"), nav = document.getElementById("nav");
let leave = null;

/** Where the page is: ["d", "bolts", "tune"] and the parameters behind "?". */
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { parts: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query || "") };
}
export const go = (...parts) => { location.hash = "#/" + parts.map(encodeURIComponent).join("/"); };

async function show() {
  if (!me) return;
  leave?.abort();
  const mine = (leave = new AbortController());
  const { parts, query } = place();
  const name = parts[0] || "wall";
  if (!modules[name]) { location.replace("#/wall"); return; }
  main.className = "";
  if (document.querySelector("dialog[open]")) document.querySelector("dialog[open]").close();
  drawNav(name);
  try {
    const page = await modules[name]();
    if (mine.signal.aborted) return;
    fill(main, h("p", { class: "empty" }, "Loading …"));
    await page.show(main, parts.slice(1), { signal: mine.signal, query });
    if (!mine.signal.aborted) document.title = [main.querySelector("h1")?.textContent, "Nearmiss"].filter(Boolean).join(" – ");
  } catch (e) {
    if (mine.signal.aborted) return;
    if (e.status === 401) return;
    console.error(e);
    fill(main, h("div", { class: "empty" }, h("p", {}, e.message), h("button", { onclick: show }, "Try again")));
  }
}

/** A banner at the head of a page. */
export const banner = (kind, ...text) => h("div", { class: "banner " + kind }, ...text);

function drawNav(name) {
  const current = { camera: "wall", d: "detectors" }[name] || name;
  const all = may("admin") ? [...pages, ["users", "Users"], ["audit", "Audit"]] : pages;
  fill(nav, all.map(([id, word]) => h("a", { href: "#/" + id, "aria-current": id === current ? "page" : null }, word,
    bindings.enabled && bindings.bindings[id] ? h("kbd", { "aria-hidden": "true" }, bindings.bindings[id]) : null)));
}

let gone = ["", null]; // what is away, and what says so
function sayGone(what) {
  if (gone[0] === what) return;
  gone[1]?.remove();
  gone = [what, what ? toast(what, { bad: true, ms: 0 }) : null];
}

const parts = {};
function drawTop() {
  parts.broker = h("span", {}, chip("waiting", "connecting"));
  parts.open = h("a", { class: "count", href: "#/alarms" });
  parts.jobs = h("a", { class: "count wide", href: "#/jobs" });
  fill(top_,
    h("a", { class: "brand", href: "#/wall", "aria-label": "Nearmiss" }, h("img", { src: document.querySelector("link[rel=icon]").href, alt: "" }), h("span", {}, "Nearmiss")),
    parts.broker, h("span", { class: "gap" }), parts.open, parts.jobs,
    h("span", { class: "soft wide" }, me.user + " · " + me.role),
    h("button", { class: "plain", onclick: theme, title: "Light or dark", "aria-label": "Light or dark" }, "◑"),
    h("button", { class: "plain", onclick: help, title: "Help and keys", "aria-label": "Help and keys" }, "?"),
    me.open_to_all || me.user === "" ? null : h("button", { class: "plain", onclick: signOut }, "Sign out"));
  drawStatus(live.last.status);
}

function drawStatus(s) {
  if (!parts.broker) return;
  const away = live.isAway() ? "no connection" : s && s.broker !== "connected" ? "broker away" : "";
  fill(parts.broker, away ? chip("away", away) : chip(s ? "ok" : "waiting", s ? "connected" : "connecting"));
  sayGone(away && `${live.isAway() ? "The console does not answer" : "The broker is away"}: you see what was known last. The page goes on by itself.`);
  if (!s || s.broker !== "connected") return;
  fill(parts.open, s.open ? chip("open", [s.open.toLocaleString("en") + " open", h("span", { class: "wide" }, s.open === 1 ? "alarm" : "alarms")]) : h("span", { class: "soft" }, "none open"));
  fill(parts.jobs, s.jobs ? chip("running", plural(s.jobs, "job")) : h("span", { class: "soft" }, "no jobs"));
}

function theme() {
  const next = { "": "light", light: "dark", dark: "" }[document.documentElement.dataset.theme || ""];
  setTheme(next);
  localStorage.setItem("nm-theme", next);
  toast(next ? next + " colours" : "colours as the system has them", { ms: 2000 });
}
function setTheme(t) {
  if (t) document.documentElement.dataset.theme = t;
  else delete document.documentElement.dataset.theme;
}

/** A dialog; body gets close(). Returns a promise of what close was called with. */
export function dialog(title, body) {
  return new Promise((done) => {
    const d = h("dialog", { "aria-labelledby": "dialog-title" });
    let result;
    const close = (v) => { result = v; d.close(); };
    d.addEventListener("close", () => { d.remove(); done(result); });
    fill(d, h("h2", { id: "dialog-title" }, title), body(close));
    document.body.append(d);
    d.showModal();
  });
}

/** Asks before something that others notice; with a reason that is kept. */
export function confirm(title, text, { word = "Do it", danger, reason } = {}) {
  return dialog(title, (close) => {
    const why = h("input", { required: true, maxlength: 200, "aria-label": "Reason" });
    return h("form", { onsubmit: (e) => { e.preventDefault(); close(reason ? why.value.trim() : true); } }, h("p", {}, text),
      reason ? h("label", { class: "field" }, "Reason (kept with the change)", why) : null,
      h("div", { class: "actions" }, h("button", { type: "button", onclick: () => close() }, "Cancel"), h("button", { class: danger ? "danger" : "primary" }, word)));
  });
}

function help() {
  return dialog("Keys", (close) => {
    const rows = () => Object.keys(bindings.about).map((a) => h("label", { class: "field" }, bindings.about[a],
      h("input", { value: bindings.bindings[a], maxlength: 5, disabled: !bindings.enabled, onchange: (e) => bindings.bind(a, e.target.value.trim()) })));
    const box = h("div", { class: "grid" }, rows());
    return [
      h("p", { class: "soft small" }, "They work outside of fields. Two keys are pressed one after the other; a field left empty gets its default."),
      box,
      h("p", {}, h("label", {}, h("input", { type: "checkbox", checked: bindings.enabled, onchange: (e) => { bindings.enable(e.target.checked); fill(box, rows()); drawNav(place().parts[0] || "wall"); } }), " keys are on")),
      h("label", { class: "field" }, "Seconds in which a verdict can be undone before it is sent (0 to 60)", h("input", { type: "number", min: 0, max: 60, value: undoFor(), onchange: (e) => { if (e.target.reportValidity()) localStorage.setItem("nm-hold", e.target.value); } })),
      h("p", { class: "soft small" }, "Nearmiss " + me.version + ". Scores are distances to the nearest normals; p is the share of normal images that look at least as strange. The API is described in ",
        h("a", { href: "api/v1/openapi.yaml" }, "openapi.yaml"), "."),
      h("div", { class: "actions" }, h("button", { onclick: () => { bindings.reset(); fill(box, rows()); } }, "Defaults"), h("button", { class: "primary", autofocus: true, onclick: () => close() }, "Close")),
    ];
  });
}

/** How many seconds a verdict waits before it is sent. */
export const undoFor = () => Math.min(60, Math.max(0, Number(localStorage.getItem("nm-hold") ?? 4) || 0));

async function signOut() {
  try { await remove("api/v1/session"); } catch (e) { complain(e); return; }
  live.stop();
  location.reload();
}

function signIn() {
  if (main.querySelector("form.sign")) return;
  leave?.abort();
  me = null;
  live.stop();
  fill(nav);
  fill(top_, h("span", { class: "brand" }, h("img", { src: document.querySelector("link[rel=icon]").href, alt: "" }), "Nearmiss"));
  const { parts: [first] } = place();
  const token = first === "setup" ? location.hash.split("?")[1] || "" : "";
  const user = h("input", { autocomplete: "username", required: true }), password = h("input", { type: "password", autocomplete: token ? "new-password" : "current-password", required: true });
  const wrong = h("p", { role: "alert" });
  main.className = "";
  fill(main, h("form", {
    class: "panel form sign",
    onsubmit: async (e) => {
      e.preventDefault();
      try {
        if (token) await post("api/v1/setup", { token, user: user.value, password: password.value });
        else await post("api/v1/session", { user: user.value, password: password.value });
        if (token) history.replaceState(null, "", "#/wall");
        begin();
      } catch (x) { fill(wrong, chip("failed", "not signed in"), " " + x.message); }
    },
  }, h("h1", {}, token ? "First administrator" : "Sign in"),
  h("label", { class: "field" }, "User", user), h("label", { class: "field" }, token ? "Password, 12 characters or more" : "Password", password),
  wrong, h("button", { class: "primary" }, token ? "Create" : "Sign in")));
  user.focus();
}

async function begin() {
  let s;
  try { s = await get("api/v1/session"); } catch (e) { s = { ready: false }; }
  if (!s.ready) {
    fill(main, h("p", { class: "empty" }, "The console waits for the broker. Is ", h("code", {}, "nearmiss up"), " or ", h("code", {}, "nearmiss broker"), " running? This page goes on by itself."));
    setTimeout(begin, 2000);
    return;
  }
  if (s.role === "nobody") { signIn(); return; }
  me = s;
  drawTop();
  live.start();
  get("api/v1/status").then((x) => { live.last.status ||= x; drawStatus(live.last.status); }).catch(() => {});
  await show();
}

setTheme(localStorage.getItem("nm-theme") || "");
addEventListener("hashchange", show);
addEventListener("nm-signed-out", () => me && !me.open_to_all && signIn());
for (const k of ["status", "away", "back"]) live.on(k, () => drawStatus(live.last.status));
live.on("hello", (x) => { if (me && x.version !== me.version) toast("The console was updated.", { action: ["Reload", () => location.reload()], ms: 60000 }); });

// New alarms are told to who cannot see them, at most every five seconds.
let waiting = 0, timer = 0;
live.on("event", (e) => {
  if (e.kind !== "anomaly") return;
  if (live.last.status) { live.last.status.open += e.state === "open" ? 1 : 0; drawStatus(live.last.status); }
  waiting++;
  timer ||= setTimeout(() => {
    fill(document.getElementById("announce"), plural(waiting, "new alarm"));
    waiting = timer = 0;
  }, 5000);
});

const forever = new AbortController();
keys({
  help, wall: () => go("wall"), alarms: () => go("alarms"), detectors: () => go("detectors"), jobs: () => go("jobs"), health: () => go("health"),
}, forever.signal);
begin();
