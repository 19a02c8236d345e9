// Releases: which serves, which did, and the way there and back.
import { ago, bytes, chip, facts, fill, h, num, percent, short, table, when } from "./dom.js";
import { Problem, complain, doing, get, post, toast } from "./api.js";
import { confirm, dialog, may } from "./app.js";

export async function show(root, d, { signal }) {
  const picked = [];
  async function draw() {
    const r = await get(`api/v1/detectors/${d.name}/releases`);
    if (signal.aborted) return;
    const active = r.items.find((x) => x.active)?.release;
    const change = (what, title, text, x, extra = {}) => doing(async () => {
      const reason = await confirm(title, text, { word: title, reason: what !== "pin" });
      if (!reason) return;
      try {
        await post(`api/v1/detectors/${d.name}/${what}`, { ...(x && { release: x.release }), ...(active && what !== "pin" && what !== "shadow" && { expect: active }), ...(what !== "pin" && { reason }), ...extra });
        toast("done: " + title.toLowerCase());
      } catch (e) {
        if (!(e instanceof Problem) || e.code !== "conflict") throw e;
        const now = (await get(`api/v1/detectors/${d.name}/releases`)).history[0];
        await dialog("Somebody was faster", (close) => [h("p", { "data-test": "conflict" }, now ? `${now.by || "somebody"} made release ${short(now.release)} active ${ago(now.promoted_at)}${now.reason ? ": " + now.reason : ""}. Nothing was changed by you.` : e.message), h("div", { class: "actions" }, h("button", { class: "primary", onclick: () => close() }, "I see"))]);
      }
      await draw();
    });
    const row = (x) => {
      const f = x.facts || {};
      return { class: x.active ? "on" : null, cells: [
        h("label", {}, h("input", { type: "checkbox", "aria-label": "Compare " + short(x.release), checked: picked.includes(x.release), onchange: (e) => { if (e.target.checked) { picked.push(x.release); if (picked.length > 2) picked.shift(); } else picked.splice(picked.indexOf(x.release), 1); draw().catch(complain); } })),
        h("span", { class: "mono" }, short(x.release)), h("span", {}, x.active ? chip("live", "active") : "", x.candidate ? chip("running", "candidate") : "", x.pinned ? chip("seen", "pinned") : "", x.problem ? chip("failed", "unreadable", x.problem) : ""), h("span", { title: when(x.stored_at) }, ago(x.stored_at)),
        f.method || "–", num(f.k), percent(f.promised_rate), num(f.held_out), num(f.threshold), num(f.normals), bytes(f.bytes),
        may("operator") ? h("div", { class: "verdict", style: { margin: 0 } }, x.active ? null : h("button", { onclick: change("promote", "Promote", `Release ${short(x.release)} judges ${d.name}'s frames from now on.`, x) }, "Promote"),
          x.candidate ? h("button", { onclick: change("shadow", "End shadow", "The candidate no longer scores alongside.") }, "End shadow") : x.active ? null : h("button", { onclick: change("shadow", "Shadow", `Release ${short(x.release)} scores alongside, and where it disagrees there is an event.`, x) }, "Shadow"),
          h("button", { onclick: change("pin", x.pinned ? "Unpin" : "Pin", x.pinned ? "It may be collected." : "It is never collected.", x, { unpin: x.pinned }) }, x.pinned ? "Unpin" : "Pin")) : "",
      ] };
    };
    const two = picked.map((p) => r.items.find((x) => x.release === p)).filter(Boolean);
    const cmp = two.length === 2 ? h("section", { class: "panel" }, h("h2", {}, "Compare"), table(["", short(two[0].release), short(two[1].release)], [
      ["Method", "method"], ["k", "k"], ["Promised", "promised_rate", percent], ["Asked for", "false_alarm_rate", percent], ["Held out", "held_out"], ["Threshold", "threshold", num], ["Normals", "normals"], ["Model", "model"], ["Bytes", "bytes", bytes],
    ].map(([w, k, f = (v) => v ?? "–"]) => { const [a, b] = two.map((x) => x.facts?.[k]); return { class: a !== b ? "on" : null, cells: [w, f(a), f(b)] }; }))) : picked.length === 1 ? h("p", { class: "soft" }, "Choose a second one to compare.") : null;
    fill(root,
      h("section", { class: "panel" }, h("div", { class: "head" }, h("h2", { style: { margin: 0 } }, "Releases"), h("span", { class: "gap" }), may("operator") && r.history.length > 1 ? h("button", { onclick: change("rollback", "Roll back", "The release before this one judges again.") }, "Roll back …") : null),
        r.items.length ? table(["", "Release", "State", "Made", "Method", "#k", "#Promised", "#Held out", "#Threshold", "#Normals", "#Size", ""], r.items.map(row)) : h("p", { class: "empty" }, "No release yet: train the detector.")), cmp,
      r.shadows.length ? h("section", { class: "panel" }, h("h2", {}, "Candidate beside the active release"), r.shadows.map((s) => facts(["Frames", num(s.frames)], ["Both alarm", s.both], ["Only the active", s.only_active], ["Only the candidate", s.only_shadow])), h("p", {}, h("a", { href: `#/alarms?kind=disagreement&detector=${d.name}` }, "Where they disagree"))) : null,
      r.history.length ? h("section", { class: "panel" }, h("h2", {}, "History"), table(["When", "Release", "By", "Why"], r.history.map((p) => [when(p.promoted_at), h("span", { class: "mono" }, short(p.release)), p.by || "", (p.rolled_back ? `rolled back from ${short(p.rolled_back)}. ` : "") + (p.reason || "")]))) : null);
  }
  await draw();
}
