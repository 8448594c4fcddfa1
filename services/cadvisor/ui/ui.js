"use strict";
// Draws what /api/snapshots tells, once a second. No library, nothing from elsewhere.
const HISTORY = 120;
const byId = (id) => document.getElementById(id);
let snapshots = [];
let order = { key: "cpu", ascending: false };

const bytes = (value) => {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
};
const cores = (value) => (value === null ? "–" : `${Math.round(value / 1e6)} m`);

function line(values, kind, width = 110, height = 22) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...values.map((v) => v || 0), 1);
  const points = values.map((v, i) => `${(width - (values.length - 1 - i) * width / (HISTORY - 1)).toFixed(1)},${(height - 1 - (v || 0) / most * (height - 2)).toFixed(1)}`);
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  drawn.setAttribute("points", points.join(" "));
  drawn.setAttribute("class", kind);
  svg.append(drawn);
  return svg;
}

function cell(content, kind) {
  const made = document.createElement("td");
  if (kind) made.className = kind;
  made.append(content);
  return made;
}

function card(title, value, more, values, kind) {
  const made = document.createElement("div");
  made.className = "card";
  for (const [tag, name, text] of [["h2", "", title], ["div", "value", value], ["div", "more", more]]) {
    const part = document.createElement(tag);
    part.className = name;
    part.textContent = text;
    made.append(part);
  }
  if (values) made.append(line(values, kind, 200, 34));
  return made;
}

function label(item) {
  if (!item.pod) return item.path.replace(item.id, item.id.slice(0, 12));
  return `${item.namespace}/${item.pod} ${item.name === "POD" ? "(sandbox)" : item.name}`;
}

function compare(a, b) {
  const key = order.key;
  const [x, y] = key === "label" ? [label(a), label(b)] : [a[key] ?? -1, b[key] ?? -1];
  const result = x < y ? -1 : x > y ? 1 : label(a) < label(b) ? -1 : 1;
  return order.ascending ? result : -result;
}

function draw() {
  const now = snapshots[snapshots.length - 1];
  if (!now) return;
  const machine = now.machine;
  const past = (read) => snapshots.map(read);
  byId("totals").replaceChildren(
    card("Machine CPU", cores(machine.cpu), "thousandths of a core", past((s) => s.machine.cpu), "cpu"),
    card("Machine memory", bytes(machine.memory), `working set of ${bytes(machine.limit)}`, past((s) => s.machine.memory), "memory"),
    card("Network", `${bytes(machine.received)} in`, `${bytes(machine.sent)} out, since boot`),
    card("Containers", String(now.containers.length), `sampled in ${now.cost.toFixed(1)} ms`),
  );
  byId("error").hidden = !now.error;
  byId("error").textContent = now.error;
  byId("empty").hidden = now.containers.length > 0;
  byId("rows").replaceChildren(...[...now.containers].sort(compare).map((item) => {
    const row = document.createElement("tr");
    const history = (key) => snapshots.map((s) => (s.containers.find((c) => c.id === item.id) || {})[key]).filter((v) => v !== undefined);
    const name = document.createElement("span");
    name.textContent = label(item);
    name.title = item.path;
    if (!item.pod) name.className = "where";
    row.append(
      cell(name), cell(cores(item.cpu), "number"), cell(line(history("cpu"), "cpu"), "graph"),
      cell(bytes(item.memory) + (item.limit ? ` / ${bytes(item.limit)}` : ""), "number"), cell(line(history("memory"), "memory"), "graph"),
      cell(bytes(item.received), "number"), cell(bytes(item.sent), "number"),
      cell(bytes(item.read), "number"), cell(bytes(item.written), "number"), cell(String(item.processes), "number"),
    );
    return row;
  }));
  for (const head of document.querySelectorAll("th[data-key]")) {
    if (head.dataset.key === order.key) head.setAttribute("aria-sort", order.ascending ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
}

for (const head of document.querySelectorAll("th[data-key]")) {
  head.querySelector("button").addEventListener("click", () => {
    const same = order.key === head.dataset.key;
    order = { key: head.dataset.key, ascending: same ? !order.ascending : head.dataset.key === "label" };
    draw();
  });
}

async function look() {
  const state = byId("state");
  try {
    const answer = await fetch(`api/snapshots${snapshots.length ? "" : "?history=1"}`);
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    const last = snapshots.length ? snapshots[snapshots.length - 1].time : 0;
    snapshots = [...snapshots, ...(await answer.json()).filter((s) => s.time > last)].slice(-HISTORY);
    state.textContent = snapshots.length ? `as of ${new Date(snapshots[snapshots.length - 1].time * 1000).toLocaleTimeString()}` : "waiting for the first sample";
    state.className = "";
    draw();
  } catch (error) {
    state.textContent = `No answer (${error.message}); trying again`;
    state.className = "lost";
  }
  setTimeout(look, 1000);
}
look();
