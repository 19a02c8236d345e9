// Keys: single letters, which can be changed or switched off (WCAG 2.1.4).

const defaults = {
  help: "?", wall: "g w", alarms: "g a", detectors: "g d", data: "g t", jobs: "g j", health: "g h",
  next: "j", previous: "k", filter: "/", falseAlarm: "f", confirm: "c", seen: "s", undo: "u", reason: "r",
  heat: "h", nearest: "n", zoom: "z", select: "x", pause: ".", order: "o", create: "C",
};
export const about = {
  help: "this help", wall: "wall", alarms: "alarms", detectors: "detectors", data: "data of the detector", jobs: "jobs", health: "health",
  next: "next", previous: "previous", filter: "filter", falseAlarm: "false alarm", confirm: "confirm the defect", seen: "seen, nothing to learn", undo: "undo",
  reason: "false alarm, with a reason", heat: "heat on and off", nearest: "next nearest normal", zoom: "zoom", select: "select", pause: "pause the wall", order: "fixed order", create: "new detector",
};

let stored = {};
try { stored = JSON.parse(localStorage.getItem("nm-keys")) || {}; } catch { /* as they are */ }
export let bindings = { ...defaults, ...stored.keys };
export let enabled = stored.off !== true;

function save() {
  const keys = {};
  for (const k in bindings) if (bindings[k] !== defaults[k]) keys[k] = bindings[k];
  localStorage.setItem("nm-keys", JSON.stringify({ keys, off: !enabled }));
}

export function bind(action, key) { bindings[action] = key || defaults[action]; save(); }
export function enable(on) { enabled = on; save(); }
export function reset() { bindings = { ...defaults }; save(); }

const stack = []; // of handlers, the newest first
let pending = "", timer = 0;

/** Listens for actions until signal ends: {next: f, …}. */
export function keys(handlers, signal) {
  stack.unshift(handlers);
  signal.addEventListener("abort", () => stack.splice(stack.indexOf(handlers), 1));
}

addEventListener("keydown", (e) => {
  if (!enabled || e.ctrlKey || e.altKey || e.metaKey || e.defaultPrevented || document.querySelector("dialog[open]")) return;
  const t = e.target;
  if (t.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(t.tagName) && t.type !== "range" && t.type !== "checkbox") return;
  const typed = pending ? pending + " " + e.key : e.key;
  const lower = e.shiftKey && /^[JK]$/.test(e.key) ? e.key.toLowerCase() : typed;
  clearTimeout(timer);
  pending = "";
  for (const [action, key] of Object.entries(bindings)) {
    if (key !== lower) continue;
    const f = stack.find((h) => h[action]);
    if (f) {
      e.preventDefault();
      f[action](e);
      return;
    }
  }
  if (Object.values(bindings).some((k) => k.startsWith(typed + " "))) {
    pending = typed;
    timer = setTimeout(() => { pending = ""; }, 1500);
  }
});
