// Sinks: where events go, and what became of them.
import { ago, chip, fill, h, num, table } from "./dom.js";
import { complain, doing, get, post, toast } from "./api.js";
import * as live from "./live.js";
import { confirm, may } from "./app.js";

const state = (s) => (!s.enabled ? chip("seen", "paused") : s.breaker_open ? chip("failed", "receiver down") : s.error && !s.last_sent ? chip("failed", "failing") : chip("ok", "at work"));

export async function show(main, _, { signal }) {
  const list = h("div");
  const test = (s) => doing(async () => {
    const a = await post(`api/v1/sinks/${encodeURIComponent(s.name)}/test`);
    if (a.ok) toast(`${s.name}: event ${a.event.slice(0, 12)} arrived after ${num(a.seconds)} s${a.filter ? "; by itself it would be " + a.filter : ""}`);
    else toast(`${s.name}: ${a.error}`, { bad: true, ms: 15000 });
    await draw();
  });
  const again = (s) => doing(async () => {
    if (!await confirm("Send dead letters again", `What ${s.name} could not deliver is sent once more, past its filters.`, { word: "Send again" })) return;
    const a = await post(`api/v1/sinks/${encodeURIComponent(s.name)}/replay`);
    toast(`${a.sent} sent, ${a.failed} failed${a.error ? ": " + a.error : ""}`, { bad: a.failed > 0 });
    await draw();
  });
  async function draw() {
    let items;
    try { ({ items } = await get("api/v1/sinks")); } catch (e) {
      if (e.status !== 503) throw e;
      if (!signal.aborted) fill(list, h("p", { class: "empty" }, "Nobody runs the sinks now: ", h("code", {}, "nearmiss up"), " does, and so does ", h("code", {}, "nearmiss sinks"), "."));
      return;
    }
    if (signal.aborted) return;
    fill(list, items.length ? h("section", { class: "panel" }, table(["Name", "Kind", "State", "What became of events", "#Waiting", "Last delivered", ""], items.map((s) => [
      h("b", {}, s.name), s.kind, state(s),
      h("div", {}, Object.entries(s.results || {}).map(([k, n]) => `${k} ${num(n)}`).join(", ") || "nothing yet", s.error ? h("div", { class: "soft" }, s.error) : null),
      num(s.pending), s.last_sent ? `${ago(s.last_sent)}, after ${num(s.delay_seconds || 0)} s` : "never",
      may("admin") ? h("div", { class: "verdict", style: { margin: 0 } }, h("button", { onclick: test(s) }, "Test"), h("button", { onclick: again(s) }, "Dead letters again …")) : "",
    ]))) : h("p", { class: "empty" }, "Events go nowhere yet. ", h("code", {}, "nearmiss sinks add"), " has them sent by mail, webhook, MQTT, Modbus or OPC UA, or kept in an archive."));
  }
  fill(main, h("div", { class: "head" }, h("h1", {}, "Sinks"), h("span", { class: "gap" }), h("a", { class: "button", href: "#/health" }, "Dead letters")), list);
  await draw();
  live.on("status", () => draw().catch(complain), signal);
}
