// The wall: a tile a camera.
import { ago, chip, fill, h, num } from "./dom.js";
import { get } from "./api.js";
import * as live from "./live.js";
import { keys } from "./keys.js";
import { strip } from "./chart.js";
import { banner, me } from "./app.js";

const strips = new Map(); // "detector/camera" → ticks [highest, threshold, alarms]; kept between visits
const filled = new Set();
let names = [];

live.on("cams", (all) => { names = all; });
live.on("scores", ({ v }) => {
  for (const [i, , , max, threshold, , alarms] of v) {
    if (!names[i]) continue;
    const key = names[i].join("/");
    const ticks = strips.get(key) || [];
    ticks.push([max, threshold, alarms]);
    if (ticks.length > 240) ticks.shift();
    strips.set(key, ticks);
  }
});
if (live.last.cams) names = live.last.cams;

async function prefill(t) {
  if (filled.has(t.key)) return;
  filled.add(t.key);
  try {
    const s = await get(`api/v1/cameras/${t.detector}/${t.camera}/scores?for=4m`);
    const now = strips.get(t.key) || [];
    strips.set(t.key, [...s.t.map((_, i) => [s.max[i], s.threshold[i], s.alarms[i]]), ...now].slice(-240));
    t.dirty = true;
  } catch { /* it fills as scores come */ }
}

// Pictures: a few at a time, so that requests of the page get through.
let running = 0;
const queue = [];
function picture(job) {
  queue.push(job);
  turn();
}
function turn() {
  while (running < 3 && queue.length) {
    running++;
    queue.shift()().finally(() => { running--; turn(); });
  }
}

export async function show(main, _, { signal }) {
  const tiles = new Map();
  let paused = false, fixed = localStorage.getItem("nm-fixed") === "1", filter = "";
  const grid = h("div", { class: "wall" });
  const find = h("input", { type: "search", placeholder: "Filter", "aria-label": "Filter cameras", oninput: (e) => { filter = e.target.value.toLowerCase(); arrange(); } });
  const pause = h("button", { "aria-pressed": "false", onclick: () => setPaused(!paused) }, "Pause ", h("kbd", {}, "."));
  const order = h("button", { "aria-pressed": String(fixed), onclick: () => setFixed(!fixed) }, "Fixed order ", h("kbd", {}, "o"));
  const count = h("span", { class: "soft" });
  const none = h("div", { class: "empty", hidden: true });
  function setPaused(v) { paused = v; pause.setAttribute("aria-pressed", v); }
  function setFixed(v) { fixed = v; localStorage.setItem("nm-fixed", v ? "1" : "0"); order.setAttribute("aria-pressed", v); arrange(); }

  const seen = new IntersectionObserver((all) => {
    for (const e of all) {
      const t = tiles.get(e.target.dataset.key);
      if (!t) continue;
      t.visible = e.isIntersecting;
      if (t.visible) { t.dirty = true; prefill(t); ask(t); }
    }
  }, { rootMargin: "100px" });
  signal.addEventListener("abort", () => seen.disconnect());

  function tile(s) {
    const key = s.detector + "/" + s.camera;
    const t = { key, detector: s.detector, camera: s.camera, visible: false, dirty: true, at: 0 };
    t.img = h("img", { alt: "", hidden: true });
    t.none = h("span", {}, "no picture yet");
    t.canvas = h("canvas", { role: "img", "aria-label": "no scores yet" });
    t.state = h("span");
    t.score = h("b", { class: "num" });
    t.limit = h("b", { class: "num" });
    t.rate = h("span", { class: "num" });
    t.age = h("span", { class: "num" });
    t.e = h("a", { class: "tile", href: `#/camera/${s.detector}/${s.camera}`, "data-key": key },
      h("span", { class: "name" }, h("span", {}, h("b", { title: s.camera }, s.camera), h("small", { title: s.detector }, s.detector)), t.state),
      h("span", { class: "shot" }, t.none, t.img), t.canvas,
      h("span", { class: "nums" }, h("span", {}, "score ", t.score, " of ", t.limit), t.rate, t.age));
    tiles.set(key, t);
    seen.observe(t.e);
    return t;
  }

  function update(s) {
    const t = tiles.get(s.detector + "/" + s.camera) || tile(s);
    Object.assign(t, { last: s.last_frame, state_: s.state, alarm: s.last_alarm });
    fill(t.state, chip(s.state, s.state === "learning" && s.reason ? s.reason.replace(" frames", "").replace(" of ", "/") : null, s.reason));
    fill(t.score, s.last_score ? num(s.score) : "–");
    fill(t.limit, s.threshold ? num(s.threshold) : "–");
    fill(t.rate, s.frames_per_second ? num(s.frames_per_second) + "/s" : "");
    fill(t.age, s.last_frame ? ago(s.last_frame) : "");
    t.reason = s.reason;
    if (t.img.hidden) fill(t.none, s.state === "live" || s.state === "learning" ? "waiting for a frame" : s.reason || "no picture");
    return t;
  }

  const alarmed = (t) => t.alarm && Date.now() - new Date(t.alarm) < 60000;
  function arrange() {
    const all = [...tiles.values()].filter((t) => t.key.toLowerCase().includes(filter));
    all.sort((a, b) => (fixed ? 0 : alarmed(b) - alarmed(a) || 0) || a.key.localeCompare(b.key));
    if (all.length !== grid.childElementCount || all.some((t, i) => grid.children[i] !== t.e)) {
      const focus = document.activeElement;
      fill(grid, all.map((t) => t.e));
      if (focus && grid.contains(focus)) focus.focus();
    }
    for (const t of all) t.e.classList.toggle("alarmed", Boolean(alarmed(t)));
    fill(count, tiles.size ? `${all.length} of ${tiles.size} cameras` : "");
    none.hidden = all.length > 0;
    fill(none, tiles.size ? "No camera has this in its name." : ["No camera has sent a frame yet. Any program can be one: publish an image file on ", h("code", {}, "nearmiss.frames.DETECTOR.CAMERA"), ", or run ", h("code", {}, "nearmiss camera synthetic:parts --detector parts --camera line1"), "."]);
  }

  function states(all) {
    for (const s of all || []) update(s);
    arrange();
  }

  function ask(t) {
    if (t.asking || signal.aborted) return;
    t.asking = true;
    picture(() => new Promise((done) => {
      const next = (ms) => { done(); setTimeout(() => { t.asking = false; if (t.visible && !signal.aborted) ask(t); }, ms); };
      if (signal.aborted || !t.visible) { t.asking = false; done(); return; }
      if (paused || document.hidden || t.state_ === "silent") { next(1000); return; }
      const img = new Image();
      img.onload = () => { t.img.src = img.src; t.img.hidden = false; t.img.alt = `last frame of ${t.camera}`; next(1500); };
      img.onerror = () => { if (t.img.hidden) fill(t.none, t.reason || "no frame came"); next(5000); };
      img.src = `api/v1/cameras/${t.detector}/${t.camera}/frame?w=320&t=${Date.now()}`;
    }));
  }

  live.on("scores", ({ v }) => {
    if (paused) return;
    for (const [i, , last, , threshold, , alarms] of v) {
      const t = names[i] && tiles.get(names[i].join("/"));
      if (!t) continue;
      t.dirty = true;
      t.last = new Date().toISOString();
      t.now = [last, threshold];
      if (alarms) { t.alarm = t.last; t.resort = true; }
    }
  }, signal);
  live.on("status", (s) => states(s.camera_states), signal);

  let lastDraw = 0;
  const draw = (now) => {
    if (signal.aborted) return;
    requestAnimationFrame(draw);
    if (paused || now - lastDraw < 200) return; // scores come four times a second
    lastDraw = now;
    let sort = false;
    for (const t of tiles.values()) {
      if (!t.visible || !t.dirty) continue;
      t.dirty = false;
      const ticks = strips.get(t.key) || [];
      strip(t.canvas, ticks);
      if (t.now) {
        fill(t.score, num(t.now[0]));
        fill(t.limit, t.now[1] ? num(t.now[1]) : "–");
        fill(t.age, "now");
      }
      const alarms = ticks.reduce((n, k) => n + k[2], 0);
      t.canvas.setAttribute("aria-label", ticks.length ? `last score ${num(ticks[ticks.length - 1][0])}, threshold ${num(ticks[ticks.length - 1][1])}, ${alarms} alarms in view` : "no scores yet");
      if (t.resort) { sort = true; t.resort = false; }
    }
    if (sort) arrange();
  };

  const data = await get("api/v1/cameras");
  if (signal.aborted) return;
  fill(main,
    me.open_to_all ? banner("", "Everybody on this machine may do everything here. ", h("a", { href: "#/users" }, "Add a user"), " to change that.") : null,
    h("div", { class: "head" }, h("h1", {}, "Wall"), count, h("span", { class: "gap" }), find, pause, order), grid, none);
  states(data.items);
  requestAnimationFrame(draw);
  const step = (by) => () => {
    const all = [...grid.children], i = all.indexOf(document.activeElement);
    all[Math.max(0, Math.min(all.length - 1, i + by))]?.focus();
  };
  keys({ filter: () => find.focus(), pause: () => setPaused(!paused), order: () => setFixed(!fixed), next: step(1), previous: step(-1) }, signal);
  find.addEventListener("keydown", (e) => { if (e.key === "Escape") { find.value = filter = ""; arrange(); find.blur(); } });
}
