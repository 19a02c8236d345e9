// How often a good part may be called bad: the slider, and what it would change.
import { chip, facts, fill, h, num, percent, plural } from "./dom.js";
import { complain, doing, get, patch, toast } from "./api.js";
import { chart, colour, edgesOf, histogram, mark } from "./chart.js";
import { may } from "./app.js";

const most = 0.2;

export async function show(root, d, { signal }) {
  let c = null, gone = "";
  try { c = await get(`api/v1/detectors/${d.name}/calibration`); } catch (e) { gone = e.message; }
  const { items: alarms } = await get(`api/v1/events?kind=anomaly&detector=${d.name}&limit=500`);
  if (signal.aborted) return;
  fill(root, c ? slider(d, c, alarms, signal) : h("section", { class: "panel" }, h("h2", {}, "False alarms"), h("p", { class: "soft" }, d.status?.release ? "The held-out scores cannot be read now: " + gone : "There is no release yet: train the detector first.")), settings(d));
  root.dispatchEvent(new Event("ready"));
}

// What a rate comes to: as the trainer will decide, the (n+1−⌊α(n+1)⌋)-th smallest
// held-out score is the threshold.
function at(c, rate) {
  const n = c.held_out.length, above = Math.floor(rate * (n + 1) + 1e-9);
  if (above < 1) return { above, threshold: Infinity };
  return { above, threshold: c.held_out[n - above], promised: above / (n + 1), range: c.ranges[above - 1] };
}

function slider(d, c, alarms, signal) {
  const n = c.held_out.length, least = Math.min(0.001, 1 / (n + 1)), saved = d.false_alarm_rate;
  const toRate = (x) => least * (most / least) ** x, toX = (r) => Math.log(r / least) / Math.log(most / least);
  let rate = saved, plot = null;
  const text = h("p", { "aria-live": "polite", "data-test": "promise" }), counts = h("p"), flips = h("div", { class: "grid" }), state = h("p", { role: "status" });
  const range = h("input", { type: "range", min: 0, max: 1, step: "any", value: toX(saved), "aria-label": "False-alarm rate", list: "rates" });
  const box = h("input", { type: "number", min: 0.1, max: 50, step: "any", "aria-label": "False-alarm rate in percent", value: Number((100 * saved).toPrecision(3)) });
  const apply = h("button", { class: "primary", disabled: true }, "Apply"), reset = h("button", { disabled: true }, "Reset");
  const now = d.threshold_in_force ?? c.threshold ?? Infinity;

  function show() {
    const a = at(c, rate);
    range.setAttribute("aria-valuetext", percent(rate));
    if (a.above < 1) {
      fill(text, chip("warn", "out of reach"), ` ${percent(rate)} needs about ${num(5 * Math.ceil(1 / rate - 1))} different normals; ${n} were held out, which can promise ${percent(1 / (n + 1))} at best.`);
    } else {
      fill(text, h("b", { class: "big" }, `threshold ${num(a.threshold)}`), ` – about ${num(100 * a.promised)} of 100 good images`, a.range ? `; with 95 % confidence between ${num(100 * a.range[0])} and ${num(100 * a.range[1])}` : "", ".",
        d.frames_per_second ? ` At ${num(d.frames_per_second)} frames a second that is up to ${num(a.promised * d.frames_per_second * 86400)} false alarms a day.` : "");
    }
    const would = c.recent.filter((s) => s > a.threshold).length, does = c.recent.filter((s) => s > now).length;
    fill(counts, c.recent.length ? `Of the last ${plural(c.recent.length, "frame")}, ${would} would raise an alarm (now ${does}).` : "No frame has been scored since the console started.");
    const [lo, hi] = [Math.min(now, a.threshold), Math.max(now, a.threshold)];
    const flip = alarms.filter((e) => e.score > lo && e.score <= hi && e.pictures).slice(0, 12);
    fill(flips, a.threshold > now ? flip.map((e) => h("a", { class: "cell", href: `#/alarms?event=${e.sequence}`, title: `score ${num(e.score)}: would be quiet` }, h("img", { alt: `alarm with score ${num(e.score)} that would be quiet`, loading: "lazy", src: `api/v1/events/${e.sequence}/pictures/thumbnail.jpg` }))) : null);
    flipsHead.hidden = !flips.childElementCount;
    const changed = Math.abs(Math.log(rate / saved)) > 1e-6;
    apply.disabled = !changed || a.above < 1 || !may("operator");
    reset.disabled = !changed;
    plot?.redraw();
  }
  const flipsHead = h("h3", {}, "Alarms that would be quiet");
  range.addEventListener("input", () => { rate = toRate(Number(range.value)); rate = Number(rate.toPrecision(3)); box.value = Number((100 * rate).toPrecision(3)); show(); });
  box.addEventListener("input", () => { const v = Number(box.value) / 100; if (v > 0 && v < 0.5) { rate = v; range.value = toX(rate); show(); } });
  reset.addEventListener("click", () => { rate = saved; range.value = toX(rate); box.value = Number((100 * rate).toPrecision(3)); show(); });
  apply.addEventListener("click", doing(async () => {
    const begun = Date.now(), release = d.status?.release;
    await patch(`api/v1/detectors/${d.name}`, { false_alarm_rate: rate }, d.revision);
    fill(state, chip("running", "on its way"), " a trainer makes a release with the new threshold.");
    for (;;) {
      await new Promise((done) => setTimeout(done, 500));
      if (signal.aborted) return;
      const x = await get(`api/v1/detectors/${d.name}`);
      const job = x.status?.last_job;
      if (job?.readjust && (job.state === "failed" || job.held) && new Date(job.at) > begun - 5000) { fill(state, chip("failed", "not in force"), " ", job.error || job.held); return; }
      if (x.status?.release && x.status.release !== release) { toast(`in force after ${Math.round((Date.now() - begun) / 1000)} s`); dispatchEvent(new HashChangeEvent("hashchange")); return; }
    }
  }));
  const hist = h("div", { class: "chart" });
  const lo = Math.min(c.held_out[0], ...c.recent.filter((x) => x > 0)), hi = Math.max(c.held_out[n - 1], now === Infinity ? 0 : now * 1.2, ...c.recent), { log, edges } = edgesOf(lo, hi * 1.01, 40);
  const share = (v) => { const k = histogram(v, edges); return k.map((x) => x / Math.max(1, v.length)); };
  setTimeout(() => {
    if (signal.aborted) return;
    plot = chart(hist, {
      height: 220, log, signal, label: "how often each score came: held-out normals and the last frames", x: { label: "score", range: () => [edges[0], edges[edges.length - 1]] }, y: { label: "share" },
      data: [edges, share(c.recent), share(c.held_out)], series: [{ label: `last ${c.recent.length} frames`, colour: colour("--soft"), fill: colour("--line"), bars: true }, { label: `${n} held-out normals`, colour: colour("--accent"), width: 2 }],
      marks: (u) => {
        if (now !== Infinity) mark(u, now, "now", colour("--soft"), [6, 4]);
        const t = at(c, rate).threshold;
        if (t !== Infinity && t !== now) mark(u, t, "new", colour("--alarm"));
      },
    });
    show();
  });
  show();
  return h("section", { class: "panel" }, h("h2", {}, "False alarms"),
    d.threshold_by ? h("p", {}, chip("warn", "set by hand"), ` The threshold ${num(d.threshold_in_force)} was set by ${d.threshold_by}: nothing is promised, and the rate below does not act.`) : null,
    h("div", { class: "slider" }, range, h("label", {}, h("span", { class: "hidden-text" }, "percent"), box, " %")), text, counts, hist, flipsHead, flips, state,
    h("div", { class: "actions" }, reset, apply));
}

const fields = [
  ["k", "Nearest normals that are summed (k)", "number", "in a new release of the same model"], ["smoothing", "Decide on the mean of a camera's last scores", "number", "at once"], ["cool_down", "At most one alarm a camera in this time (as 30s)", "text", "at once"],
  ["quiet", "An incident is over when nothing has gone wrong for (as 30s)", "text", "at once"], ["quiet_frames", "Or after so many good frames in a row (0: time alone)", "number", "at once"], ["group", "An incident is of", ["camera", "detector"], "at once"],
  ["silence", "A camera without a frame for so long is an event (as 1m; 0s: never)", "text", "at once"], ["policy", "When there are more frames than can be scored", ["lossless", "live"], "at once"], ["defect_share", "Share of defective frames that is no drift", "number", "at once"],
  ["retention", "Pictures of alarms are kept for (as 720h)", "text", "at once"], ["evidence_mib", "Pictures take at most, MiB", "number", "at once"], ["threshold", "Threshold by hand (0: the release's)", "number", "at once; nothing is promised"],
];

function settings(d) {
  const inputs = {};
  const button = h("button", { class: "primary", disabled: !may("operator") }, "Save");
  const form = h("form", {
    class: "form", onsubmit: async (e) => {
      e.preventDefault();
      const change = {};
      for (const [k, , kind] of fields) {
        const v = inputs[k].value.trim(), old = String(d[k] ?? (kind === "number" ? 0 : kind === "text" ? "0s" : ""));
        if (v !== old) change[k] = v === "" || v === "0" || v === "0s" ? null : kind === "number" ? Number(v) : v;
      }
      if (!Object.keys(change).length) { toast("Nothing was changed."); return; }
      try {
        await patch(`api/v1/detectors/${d.name}`, change, d.revision);
        toast("Saved.");
        dispatchEvent(new HashChangeEvent("hashchange"));
      } catch (x) { complain(x); }
    },
  }, h("div", { class: "cols", style: { gap: "12px 16px" } }, fields.map(([k, label, kind, acts]) => {
    inputs[k] = Array.isArray(kind) ? h("select", {}, kind.map((v) => h("option", { selected: d[k] === v }, v))) : h("input", { type: kind, step: "any", min: kind === "number" ? 0 : null, value: d[k] ?? (kind === "number" ? 0 : "0s") });
    return h("label", { class: "field" }, label, inputs[k], h("span", {}, "acts ", acts));
  })), h("div", { class: "actions" }, button));
  return h("section", { class: "panel" }, h("h2", {}, "Settings"), form,
    facts(["Learnt with (acts with the next training)", `${d.method}, score ${d.score || "full"}, symmetry ${d.symmetry || "none"}${d.region ? ", a region" : ""}${d.ignore?.length ? ", " + plural(d.ignore.length, "masked part") : ""}`], ["Revision", d.revision]));
}
