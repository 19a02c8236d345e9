// One detector: tune, area, train, releases, data.
import { chip, fill, h, short } from "./dom.js";
import { doing, get, remove, toast } from "./api.js";
import { keys } from "./keys.js";
import { confirm, go, may } from "./app.js";
import * as tune from "./tune.js";
import * as area from "./area.js";
import * as train from "./train.js";
import * as releases from "./releases.js";
import * as data from "./data.js";

const tabs = { tune: ["Tune", tune], area: ["Area", area], train: ["Train", train], releases: ["Releases", releases], data: ["Data", data] };

export async function show(main, [name, tab = "tune"], { signal }) {
  const d = await get("api/v1/detectors/" + encodeURIComponent(name));
  if (signal.aborted) return;
  const root = h("div");
  const drop = doing(async () => {
    if (!await confirm("Delete " + name, "Its configuration goes; frames that come wait for nobody. Its normals, events and releases stay.", { word: "Delete", danger: true })) return;
    await remove("api/v1/detectors/" + encodeURIComponent(name));
    toast(name + " is deleted");
    go("detectors");
  });
  fill(main,
    h("div", { class: "head" }, h("h1", { style: { overflowWrap: "anywhere", minWidth: 0 } }, name), d.status?.release ? chip("live", "release " + short(d.status.release)) : chip("no_release"),
      d.open ? h("a", { href: "#/alarms?detector=" + name }, chip("open", d.open + " open")) : null, h("span", { class: "gap" }), may("admin") ? h("button", { class: "danger", onclick: drop }, "Delete …") : null),
    d.description ? h("p", { class: "soft" }, d.description) : null,
    h("nav", { class: "tabs", "aria-label": "Parts of the detector" }, Object.entries(tabs).map(([id, [word]]) => h("a", { href: `#/d/${name}/${id}`, "aria-current": id === tab ? "page" : null }, word))), root);
  keys({ data: () => go("d", name, "data") }, signal);
  await (tabs[tab] || tabs.tune)[1].show(root, d, { signal });
}
