// Sinks: where events go, and what became of them; made, changed and tried here.
import { ago, chip, facts, fill, h, num } from "./dom.js";
import { complain, doing, get, patch, post, remove, toast } from "./api.js";
import * as live from "./live.js";
import { confirm, dialog, may } from "./app.js";

const state = (s) => (!s.enabled ? chip("seen", "paused") : s.breaker_open ? chip("failed", "receiver down") : s.error && !s.last_sent ? chip("failed", "failing") : chip("ok", "at work"));
const kinds = {
  webhook: "https://desk.example.org/alarms", mail: "smtp://mail.example.org", mqtt: "mqtts://mosquitto.example.org", archive: "/mnt/archive", modbus: "tcp://10.0.0.5:502", opcua: "opc.tcp://10.0.0.6:4840",
};
const events = ["incident.new", "incident.update", "incident.end", "anomaly", "rejected", "disagreement", "drift", "release", "camera", "store", "lost"];
const words = (s) => s.split(/[\s,]+/).filter(Boolean);
const parts = (v) => v !== null && typeof v === "object" && !Array.isArray(v);
// The merge patch that makes one object of another.
const patched = (was, now) => Object.fromEntries([...Object.keys(was).map((k) => [k, null]), ...Object.entries(now).map(([k, v]) => [k, parts(was[k]) && parts(v) ? patched(was[k], v) : v])]);
const at = (name) => "api/v1/sinks/" + encodeURIComponent(name);

/** Asks how a sink shall be; old: the one that is changed. */
function ask(old, again) {
  return dialog(old ? "Change " + old.name : "New sink", (close) => {
    const { url = "", ...rest } = old?.config || {}, s = old || {};
    const input = (value, more) => h("input", { value, autocomplete: "off", ...more });
    const field = (word, e, hint) => h("label", { class: "field" }, word, e, hint ? h("span", { class: "small" }, hint) : null);
    const name = input(s.name || "", { required: true, pattern: "[A-Za-z0-9_\\-]{1,64}", title: "letters, digits, - and _", disabled: Boolean(old) });
    const address = input(url, { required: true });
    const kind = h("select", { disabled: Boolean(old), onchange: () => { address.placeholder = kinds[kind.value]; } }, Object.keys(kinds).map((k) => h("option", { value: k, selected: k === s.kind }, k)));
    address.placeholder = kinds[kind.value];
    const secret = input(s.secret || "", { placeholder: "file:/run/secrets/chat" });
    const of = input((s.detectors || []).join(", ")), cameras = input((s.cameras || []).join(", ")), ratio = input(s.min_ratio || "", { type: "number", min: 0, step: "any" });
    const hours = input(s.hours || "", { placeholder: "Mon-Fri 06:00-22:00 Europe/Berlin" }), cool = input(s.cool_down || "", { placeholder: "1m" });
    const more = h("textarea", { rows: 3, spellcheck: "false", class: "mono" });
    more.value = Object.keys(rest).length ? JSON.stringify(rest, null, 1) : "";
    const offered = [...new Set([...events, ...(s.kinds || [])])];
    const boxes = offered.map((k) => h("input", { type: "checkbox", value: k, checked: (s.kinds || []).includes(k) }));
    const wrong = h("p", { role: "alert" });
    return h("form", {
      onsubmit: async (ev) => {
        ev.preventDefault();
        try {
          let config = {};
          try { config = more.value.trim() ? JSON.parse(more.value) : {}; } catch (e) { throw new Error("settings: " + e.message); }
          const list = (l) => (l.length ? l : null); // what is left empty goes
          const v = {
            config: patched(rest, { ...config, url: address.value.trim() }), secret: secret.value.trim() || null, detectors: list(words(of.value)), cameras: list(words(cameras.value)),
            kinds: list(boxes.filter((b) => b.checked).map((b) => b.value)), min_ratio: Number(ratio.value) || null, hours: hours.value.trim() || null, cool_down: cool.value.trim() || null,
          };
          if (old) await patch(at(old.name), v, old.revision);
          else await post("api/v1/sinks", { name: name.value, kind: kind.value, enabled: true, ...Object.fromEntries(Object.entries(v).filter(([, x]) => x !== null)) });
          close();
          toast(`${old ? old.name + " is changed" : name.value + " is there"}: try it with Test`);
          await again();
        } catch (e) { fill(wrong, chip("failed", "not stored"), " " + e.message); }
      },
    },
    h("div", { class: "cols" }, field("Name", name), field("Kind", kind)),
    field("Address of the receiver", address, "In a webhook's path or query, {secret} is where the secret goes."),
    field("Secret: where it is on the machine that runs the sinks", secret, "file:/run/secrets/…, file:….secret or env:NEARMISS_SINK_…; never the secret itself"),
    h("fieldset", {}, h("legend", {}, "Events (none chosen: what people want to know)"), offered.map((k, i) => h("label", {}, boxes[i], " " + k + " "))),
    h("div", { class: "cols" }, field("Only these detectors", of), field("Only these cameras", cameras)),
    h("div", { class: "cols" }, field("Only scores of so many times the threshold", ratio), field("Only at these hours", hours), field("Nothing more of a camera for", cool)),
    field("Further settings of the kind, JSON", more, 'as {"preset": "slack"}; all are in stream/sink/README.md'),
    wrong, h("div", { class: "actions" }, h("button", { type: "button", onclick: () => close() }, "Cancel"), h("button", { class: "primary" }, old ? "Save" : "Create")));
  });
}

export async function show(main, _, { signal }) {
  const list = h("div");
  let shown = "";
  const test = (s) => doing(async () => {
    const a = await post(at(s.name) + "/test");
    if (a.ok) toast(`${s.name}: event ${a.event.slice(0, 12)} arrived after ${num(a.seconds)} s${a.filter ? "; by itself it would be " + a.filter : ""}`);
    else toast(`${s.name}: ${a.error}`, { bad: true, ms: 15000 });
    await draw();
  });
  const again = (s) => doing(async () => {
    if (!await confirm("Send dead letters again", `What ${s.name} could not deliver is sent once more, past its filters.`, { word: "Send again" })) return;
    const a = await post(at(s.name) + "/replay");
    toast(`${a.sent} sent, ${a.failed} failed${a.error ? ": " + a.error : ""}`, { bad: a.failed > 0 });
    await draw();
  });
  const change = (s) => doing(async () => { await ask(await get(at(s.name)), soon); });
  const pause = (s) => doing(async () => { await patch(at(s.name), { enabled: !s.enabled }); await soon(); });
  const drop = (s) => doing(async () => {
    if (!await confirm("Remove " + s.name, "Events that wait for it are not sent any more.", { word: "Remove", danger: true })) return;
    await remove(at(s.name));
    await soon();
  });
  // Who runs the sinks hears of a change a moment later.
  const soon = () => new Promise((f) => setTimeout(f, 300)).then(draw);
  async function draw() {
    let items;
    try { ({ items } = await get("api/v1/sinks")); } catch (e) {
      if (e.status !== 503) throw e;
      if (!signal.aborted) fill(list, h("p", { class: "empty" }, "Nobody runs the sinks now: ", h("code", {}, "nearmiss up"), " does, and so does ", h("code", {}, "nearmiss sinks"), "."));
      return;
    }
    if (signal.aborted || JSON.stringify(items) === shown) return;
    shown = JSON.stringify(items);
    const had = [...list.querySelectorAll("button")].indexOf(document.activeElement);
    fill(list, items.length ? h("div", { class: "cols" }, items.map((s) => h("section", { class: "panel" }, h("div", { class: "head" }, h("h2", { style: { margin: 0, overflowWrap: "anywhere" } }, s.name), state(s)),
      facts(["Kind", s.kind], ["Events", Object.entries(s.results || {}).map(([k, n]) => `${num(n)} ${k}`).join(", ") || "none yet"], ["Waiting", num(s.pending)], ["Delivered", s.last_sent ? `last ${ago(s.last_sent)}, after ${num(s.delay_seconds || 0)} s` : "never"], ["Trouble", s.error]),
      may("admin") ? h("div", { class: "actions" }, h("button", { onclick: test(s) }, "Test"), h("button", { onclick: change(s) }, "Change …"), h("button", { onclick: pause(s) }, s.enabled ? "Pause" : "Resume"), h("button", { onclick: again(s) }, "Dead letters again …"), h("button", { class: "danger", onclick: drop(s) }, "Remove …")) : null)))
      : h("p", { class: "empty" }, "Events go nowhere yet. A sink has them sent by mail, webhook, MQTT, Modbus or OPC UA, or kept in an archive: ", may("admin") ? "make one with New sink, or with " : "", h("code", {}, "nearmiss sinks add"), "."));
    list.querySelectorAll("button")[had]?.focus();
  }
  fill(main, h("div", { class: "head" }, h("h1", {}, "Sinks"), h("span", { class: "gap" }), may("admin") ? h("button", { class: "primary", onclick: () => ask(null, soon) }, "New sink") : null, h("a", { class: "button", href: "#/health" }, "Dead letters")), list);
  await draw();
  live.on("status", () => draw().catch(complain), signal);
}
