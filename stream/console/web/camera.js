// One camera: its scores over time, its ranks, its last alarms.
import { ago, chip, facts, fill, h, num, percent, table, when } from "./dom.js";
import { doing, get, post, toast } from "./api.js";
import * as live from "./live.js";
import { chart, colour } from "./chart.js";
import { dialog, go, may } from "./app.js";

export async function show(main, [detector, camera], { signal }) {
  const path = `api/v1/cameras/${encodeURIComponent(detector)}/${encodeURIComponent(camera)}`;
  let over = "10m";
  const plot = h("div", { class: "chart" }), ranks = h("div", { class: "chart" }), state = h("div"), list = h("div"), shot = h("img", { alt: `last frame of ${camera}`, hidden: true });
  const noShot = h("span", {}, "waiting for a frame");
  const ten = h("button", { "aria-pressed": "true", onclick: () => setOver("10m") }, "10 min"), two = h("button", { "aria-pressed": "false", onclick: () => setOver("2h") }, "2 h");
  function setOver(v) { over = v; ten.setAttribute("aria-pressed", v === "10m"); two.setAttribute("aria-pressed", v === "2h"); draw(); }
  let charts = new AbortController();
  signal.addEventListener("abort", () => charts.abort());

  async function draw() {
    const s = await get(path + "/scores?for=" + over);
    if (signal.aborted) return;
    charts.abort();
    charts = new AbortController();
    if (!s.t.length) { fill(plot, h("p", { class: "empty" }, "No scores in this time.")); fill(ranks, h("p", { class: "empty" }, "No scores yet.")); return; }
    const alarms = s.t.map((_, i) => (s.alarms[i] ? s.max[i] : null));
    chart(plot, {
      time: true, height: 240, signal: charts.signal, label: `scores of ${camera} over ${over}`, data: [s.t, s.max, s.threshold, alarms],
      series: [{ label: "highest score a second", colour: colour("--accent") }, { label: "threshold", colour: colour("--soft"), dash: [6, 4] }, { label: "alarm", colour: colour("--alarm"), points: "only" }],
    });
    const n = 20, counts = Array(n).fill(0);
    for (const p of s.p_values) counts[Math.min(n - 1, Math.floor(p * n))]++;
    const even = s.p_values.length / n;
    chart(ranks, {
      height: 200, signal: charts.signal, label: "how often each p-value came", data: [counts.map((_, i) => i / n), counts, counts.map(() => even)], x: { label: "p-value", range: () => [0, 1] },
      series: [{ label: `last ${s.p_values.length} frames`, colour: colour("--accent"), fill: colour("--accent"), bars: true }, { label: "as when calibrated", colour: colour("--soft"), dash: [6, 4] }],
    });
  }

  function states(s) {
    const c = (s.camera_states || []).find((x) => x.detector === detector && x.camera === camera);
    const d = (s.workers || []).flatMap((w) => w.drift || []).filter((x) => x.detector === detector && x.camera === camera)[0];
    fill(state, c ? [h("p", {}, chip(c.state), " ", c.reason), facts(
      ["Score", c.last_score ? num(c.score) + " of " + num(c.threshold) + ", p " + num(c.p_value) : "none yet"], ["Frames", num(c.frames_per_second) + " a second"], ["Last frame", ago(c.last_frame)],
      ["Drift", d ? (d.drifted ? "moved: " + d.cause : "none") : "not tested yet"], ["Mean rank", d && num(d.level) + " (0.5 as calibrated)"], ["Evidence", d && num(d.evidence) + " of 1"], ["Alarm share", d && percent(d.alarm_share)],
    )] : h("p", { class: "soft" }, "Nothing is known of this camera."));
  }

  async function alarms() {
    const e = await get(`api/v1/events?kind=anomaly&detector=${detector}&camera=${camera}&limit=20`);
    if (signal.aborted) return;
    fill(list, e.items.length ? table(["Time", "#Score ÷ threshold", "#p", "State", ""], e.items.map((a) => [when(a.scored_at), num(a.score / a.threshold), num(a.p_value), chip(a.state), h("a", { href: `#/alarms?event=${a.sequence}` }, "Look")]))
      : h("p", { class: "soft" }, "No alarms of this camera."));
  }

  const take = doing(async () => {
    const n = await dialog("Take frames as normals", (close) => {
      const count = h("input", { type: "number", min: 1, max: 10000, value: 100, required: true });
      return h("form", { onsubmit: (e) => { e.preventDefault(); close(Number(count.value)); } },
        h("p", {}, `The next frames of ${detector}'s cameras become normals for the next training, besides their being scored as ever. Take them while everything is as it should be.`),
        h("label", { class: "field" }, "Frames", count),
        h("div", { class: "actions" }, h("button", { type: "button", onclick: () => close() }, "Cancel"), h("button", { class: "primary" }, "Take them")));
    });
    if (!n) return;
    await post(`api/v1/detectors/${detector}/normals/take`, { frames: n });
    toast(`The next ${n} frames of ${detector} become normals.`);
  });

  fill(main,
    h("div", { class: "head" }, h("h1", {}, camera), h("a", { href: `#/d/${detector}/tune` }, detector), h("span", { class: "gap" }), may("operator") ? h("button", { onclick: take }, "Take frames as normals …") : null, h("a", { class: "button", href: "#/wall" }, "Wall")),
    h("div", { class: "cols" },
      h("section", { class: "panel" }, h("h2", {}, "Now"), h("div", { class: "stage", style: { marginBottom: "12px", overflow: "hidden", maxHeight: "none" } }, noShot, h("div", { class: "sheet", style: { width: "min(100%, 400px)" } }, shot)), state),
      h("section", { class: "panel" }, h("div", { class: "head" }, h("h2", {}, "Scores"), h("span", { class: "gap" }), ten, two), plot),
      h("section", { class: "panel" }, h("h2", {}, "p-values"), h("p", { class: "soft small" }, "Frames like the normals give each p-value equally often. A pile on the left says that what the camera sees has moved."), ranks),
      h("section", { class: "panel" }, h("h2", {}, "Last alarms"), list)));
  const picture = () => {
    if (signal.aborted) return;
    const img = new Image();
    img.onload = () => { shot.src = img.src; shot.hidden = false; noShot.hidden = true; setTimeout(picture, 1000); };
    img.onerror = () => { fill(noShot, shot.hidden ? "no frame came" : ""); setTimeout(picture, 5000); };
    img.src = `${path}/frame?w=640&t=${Date.now()}`;
  };
  picture();
  await Promise.all([draw(), alarms(), get("api/v1/status").then(states)]);
  live.on("status", (s) => { states(s); if (over === "10m") draw().catch(() => {}); }, signal);
  live.on("event", (e) => { if (e.detector === detector && e.camera === camera) alarms().catch(() => {}); }, signal);
  addEventListener("keydown", (e) => { if (e.key === "Escape" && !document.querySelector("dialog[open]")) go("wall"); }, { signal });
}
