// Health: what runs, what is full, what needs somebody.
import { ago, bytes, chip, facts, fill, h, num, percent, plural, short, span, table, when } from "./dom.js";
import { doing, get, post, remove, toast } from "./api.js";
import * as live from "./live.js";
import { banner, confirm, dialog, may } from "./app.js";

export async function show(main, _, { signal }) {
  const body = h("div"), letters = h("div");
  let before = null; // a status of before, for rates

  function draw(s) {
    if (s.broker !== "connected") { fill(body, banner("bad", "The broker is away: " + (s.problem || ""), ". Is ", h("code", {}, "nearmiss up"), " or ", h("code", {}, "nearmiss broker"), " running?")); return; }
    const bad = [];
    for (const [name, n] of Object.entries(s.unserved || {})) bad.push(`${plural(n, "frame")} wait for detector ${name}, which does not exist: create it, or correct the camera.`);
    if (s.full) bad.push(`No frames are taken: ${s.full}.`);
    for (const l of s.lost || []) bad.push(`${plural(l.frames, "frame")} published on ${l.subject} are lost: ${l.code === "bad_topic" ? "no stream takes this topic" : "there was no room, and the client is not told"}.`);
    for (const u of s.unreadable || []) bad.push(`${u.bucket}/${u.key} cannot be read: ${u.reason}.`);
    if (!s.workers.length) bad.push("No worker answers: frames wait. Start nearmiss worker, or nearmiss up.");
    for (const w of s.workers) for (const [d, r] of Object.entries(w.refused || {})) bad.push(`${d}: release ${short(r)} was refused by worker ${w.name}; what served before goes on. Its log says why.`);
    for (const d of s.detectors || []) {
      for (const r of d.retrain || []) bad.push(`${d.detector}: ${r}`);
      if (d.last_job?.state === "failed") bad.push(`${d.detector}: its last job failed: ${d.last_job.error}`);
    }
    const frames = s.streams.find((x) => x.name.endsWith("_FRAMES"));
    let full = "";
    if (before && frames?.limit) {
      const was = before.streams.find((x) => x.name === frames.name), dt = new Date(s.at) - new Date(before.at), rate = was ? (frames.bytes - was.bytes) / dt : 0;
      full = rate > 0.05 ? `full in ${span((frames.limit - frames.bytes) / rate)} at this rate` : "not filling";
    }
    before ||= s;
    if (before && new Date(s.at) - new Date(before.at) > 60000) before = s;
    const rate = (w) => num((w.cameras || []).reduce((n, c) => n + c.per_second, 0));
    const drift = s.workers.flatMap((w) => w.drift || []);
    fill(body,
      bad.length ? h("section", { class: "panel" }, h("h2", {}, "Needs somebody"), bad.map((t) => h("p", {}, chip("warn", "look"), " ", t))) : banner("good", "Nothing needs attention."),
      h("div", { class: "cols" },
        h("section", { class: "panel" }, h("h2", {}, "Workers"), s.workers.length ? table(["Name", "#Frames/s", "#Scored", "#Alarms", "#Rejected", "#Serves", "#Exchanges"], s.workers.map((w) => [w.name, rate(w), num(w.scored), num(w.anomalies), num(w.rejected), Object.keys(w.serving || {}).length, w.swaps])) : h("p", { class: "soft" }, "No worker answers.")),
        h("section", { class: "panel" }, h("h2", {}, "Queue and jobs"), facts(["Frame queue", frames ? [plural(frames.messages, "frame"), full].filter(Boolean).join(", ") : ""], ["Waiting", h("span", {}, (s.detectors || []).map((d) => h("div", {}, `${d.detector}: ${d.waiting}`)))], ["Jobs", s.jobs ? plural(s.jobs, "job") + " queued or running" : "none"], ["Events", num(s.events)], ["Dead letters", num(s.dead_letters)])),
        h("section", { class: "panel" }, h("h2", {}, "Broker"), s.store.limit ? h("p", {}, `${bytes(s.store.bytes)} of ${bytes(s.store.limit)} `, h("progress", { max: s.store.limit, value: s.store.bytes, "aria-label": "store" })) : h("p", {}, bytes(s.store.bytes) + " stored"),
          table(["Stream", "#Messages", "#Bytes", "#Limit", "Oldest"], s.streams.map((x) => [h("span", { class: "mono" }, x.name), num(x.messages), bytes(x.bytes), x.limit ? bytes(x.limit) : "–", x.messages ? ago(x.oldest) : "–"]))),
        h("section", { class: "panel" }, h("h2", {}, "Drift"), drift.length ? table(["Camera", "State", "#Evidence", "#Mean rank", "#Alarm share"], drift.map((d) => [`${d.camera} (${d.detector})`, d.drifted ? chip("warn", d.cause + " moved") : chip("ok", "as calibrated"), num(d.evidence), num(d.level), percent(d.alarm_share)])) : h("p", { class: "soft" }, "No camera has been tested yet."))));
  }

  const head = (hex) => hex.replace(/(..)/g, "$1 ").replace(/((?:.. ){16})/g, "$1\n");
  const look = (d) => dialog("Dead letter " + d.sequence, (close) => [
    h("p", {}, h("b", {}, d.code), " ", d.reason),
    facts(["Subject", h("span", { class: "mono" }, d.subject)], ["Stream", d.stream], ["Deliveries", d.deliveries], ["When", when(d.at)], ["Bytes", bytes(d.bytes)], ...Object.entries(d.headers).filter(([k]) => !k.startsWith("Nearmiss-Dead")).map(([k, v]) => [k, h("span", { class: "mono" }, v)])),
    h("pre", { class: "mono scroll", tabindex: 0 }, head(d.head)),
    h("div", { class: "actions" }, h("button", { class: "primary", onclick: () => close() }, "Close"))]);
  const again = (d) => doing(async () => {
    await post(`api/v1/dead/${d.sequence}/again`);
    toast("published again on " + d.subject);
    await drawLetters();
  });
  const drop = (d) => doing(async () => {
    if (!await confirm("Delete the dead letter", `${d.code}: ${d.reason}`, { word: "Delete", danger: true })) return;
    await remove(`api/v1/dead/${d.sequence}`);
    await drawLetters();
  });
  async function drawLetters() {
    const { items } = await get("api/v1/dead");
    if (signal.aborted) return;
    fill(letters, h("section", { class: "panel" }, h("h2", {}, "Dead letters"), items.length ? table(["When", "Code", "Reason", "Subject", "#Bytes", ""], items.map((d) => [
      when(d.at), h("b", {}, d.code), d.reason, h("span", { class: "mono" }, d.subject), bytes(d.bytes),
      h("div", { class: "verdict", style: { margin: 0 } }, h("button", { onclick: () => look(d) }, "Look"), may("operator") ? h("button", { onclick: again(d) }, "Publish again") : null, may("admin") ? h("button", { class: "danger", onclick: drop(d) }, "Delete") : null),
    ])) : h("p", { class: "soft" }, "None: everything could be handled.")));
  }
  fill(main, h("div", { class: "head" }, h("h1", {}, "Health")), body, letters);
  const s = await get("api/v1/status");
  if (signal.aborted) return;
  draw(s);
  await drawLetters();
  live.on("status", draw, signal);
}
