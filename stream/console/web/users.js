// Users and tokens: who may come in, and do what.
import { ago, chip, fill, h, table, when } from "./dom.js";
import { doing, get, patch, post, remove, toast } from "./api.js";
import { banner, confirm, dialog, may, me } from "./app.js";

const roles = [["viewer", "viewer: sees"], ["operator", "operator: also answers alarms, tunes, trains"], ["admin", "admin: also users, tokens, deletes"]];

export async function show(main, _, { signal }) {
  const list = h("div");
  if (!may("admin")) { fill(main, h("div", { class: "head" }, h("h1", {}, "Users")), h("p", { class: "empty" }, "Only an admin sees this.")); return; }
  const role = (v = "operator") => h("select", { "aria-label": "Role" }, roles.map(([id, word]) => h("option", { value: id, selected: id === v }, word)));

  const add = doing(async () => {
    const first = me.open_to_all;
    const u = await dialog(first ? "First user: an admin" : "Add a user", (close) => {
      const name = h("input", { required: true, pattern: "[A-Za-z0-9_\\-]{1,64}", autocomplete: "off" }), pass = h("input", { type: "password", required: true, minlength: 12, maxlength: 72, autocomplete: "new-password" }), r = role(first ? "admin" : "operator");
      return h("form", { onsubmit: (e) => { e.preventDefault(); close({ name: name.value, password: pass.value, role: r.value }); } },
        first ? h("p", {}, "From then on everybody signs in, also on this machine.") : null,
        h("label", { class: "field" }, "Name: letters, digits, - and _", name), h("label", { class: "field" }, "Password, 12 characters or more", pass), h("label", { class: "field" }, "Role", r),
        h("div", { class: "actions" }, h("button", { type: "button", onclick: () => close() }, "Cancel"), h("button", { class: "primary" }, "Add")));
    });
    if (!u) return;
    await post("api/v1/users", u);
    if (first) { location.reload(); return; }
    toast(u.name + " may come in");
    await draw();
  });
  const token = doing(async () => {
    const t = await dialog("Add a token", (close) => {
      const name = h("input", { required: true, pattern: "[A-Za-z0-9_\\-]{1,64}" }), days = h("input", { type: "number", min: 1, max: 3650, value: 365, required: true }), r = role("viewer");
      return h("form", { onsubmit: (e) => { e.preventDefault(); close({ name: name.value, days: Number(days.value), role: r.value }); } }, h("p", {}, "For scripts: sent as Authorization: Bearer …"),
        h("label", { class: "field" }, "Name", name), h("label", { class: "field" }, "Days", days), h("label", { class: "field" }, "Role", r), h("div", { class: "actions" }, h("button", { type: "button", onclick: () => close() }, "Cancel"), h("button", { class: "primary" }, "Add")));
    });
    if (!t) return;
    const made = await post("api/v1/tokens", t);
    await draw();
    await dialog("The token, shown once", (close) => [h("p", { class: "mono" }, made.secret), h("div", { class: "actions" }, h("button", { class: "primary", onclick: () => close() }, "I have it"))]);
  });
  const change = (u) => doing(async () => {
    const c = await dialog("Change " + u.name, (close) => {
      const pass = h("input", { type: "password", minlength: 12, maxlength: 72, autocomplete: "new-password" }), r = role(u.role), off = h("input", { type: "checkbox", checked: u.disabled });
      return h("form", { onsubmit: (e) => { e.preventDefault(); close({ role: r.value, disabled: off.checked, ...(pass.value && { password: pass.value }) }); } },
        h("label", { class: "field" }, "Role", r), h("label", { class: "field" }, "New password (empty: as it is; a new one ends all sessions)", pass), h("label", {}, off, " disabled"),
        h("div", { class: "actions" }, h("button", { type: "button", onclick: () => close() }, "Cancel"), h("button", { class: "primary" }, "Change")));
    });
    if (!c) return;
    await patch("api/v1/users/" + u.name, c);
    await draw();
  });
  const drop = (u) => doing(async () => {
    if (!await confirm("Remove " + u.name, u.token ? "Scripts with this token are refused from now on." : "All sessions end.", { word: "Remove", danger: true })) return;
    await remove(u.token ? "api/v1/tokens/" + u.token : "api/v1/users/" + u.name);
    await draw();
  });

  async function draw() {
    const { items } = await get("api/v1/users");
    if (signal.aborted) return;
    fill(list, items.length ? h("section", { class: "panel" }, table(["Name", "Kind", "Role", "State", "Made", ""], items.map((u) => [
      h("b", {}, u.name), u.token ? "token" : "user", u.role, u.disabled ? chip("failed", "disabled") : u.token ? "until " + when(u.expires_at) : chip("ok", "active"), ago(u.created_at) + (u.created_by ? " by " + u.created_by : ""),
      h("div", { class: "verdict", style: { margin: 0 } }, u.token ? null : h("button", { onclick: change(u) }, "Change"), h("button", { class: "danger", onclick: drop(u) }, "Remove")),
    ]))) : h("p", { class: "empty" }, "There are no users: everybody on this machine may do everything here, and no other machine reaches the page. The first user is an admin."));
  }
  fill(main, me.open_to_all ? banner("", "Everybody on this machine may do everything here until there is a user.") : null,
    h("div", { class: "head" }, h("h1", {}, "Users"), h("span", { class: "gap" }), h("button", { onclick: token, disabled: me.open_to_all }, "Add a token …"), h("button", { class: "primary", onclick: add }, "Add a user …")), list);
  await draw();
}
