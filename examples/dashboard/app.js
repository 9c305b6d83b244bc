"use strict";
// The dashboard of exporter.py. Every text from the Mac goes in as text (textContent, or escaped for plotly), never as HTML.

const RANGES = [[60, "1 m"], [300, "5 m"], [900, "15 m"], [3600, "1 h"], [21600, "6 h"], [86400, "24 h"]];
const REASONS = {
  chip: "this chip has no such figure", macos: "this macOS does not offer it", permission: "no permission",
  sandbox: "the App Sandbox hides it", virtual_machine: "a virtual machine sees none", no_such_part: "this Mac has no such part",
  gpu_asleep: "the GPU was off", cpu_asleep: "the cores were off", first: "needs a second sample", slept: "the Mac slept",
  reset: "a counter was reset", slow: "published too rarely", stale: "nothing new published", frozen: "the driver's counter is frozen",
  absent: "not in this sample", source_failed: "the system call failed", recording: "not in the recording", no_limit: "no cap is set",
  not_asked: "not asked for", forked_child: "forked child",
};
const PASSING = ["gpu_asleep", "cpu_asleep", "first", "slept", "reset", "slow", "stale", "absent"];       // may be there in a moment
const AGENTS = ["gpu", "cpu", "ane", "media", "display", "io"];
const K = { percent: 1, ratio: 100, mw: 1e-3, bytes: 1 / 2 ** 30, rate: 1e-9, mhz: 1, celsius: 1 };

// [column, name, colour, factor, options]
const CHARTS = [
  { id: "utilisation", title: "Utilisation", unit: "%", range: [0, 102], lines: [
    ["gpu_active_ratio", "GPU active", 1, K.ratio, { fill: true }], ["gpu_scaled_ratio", "GPU scaled by clock", 6, K.ratio],
    ["gpu_renderer_percent", "Renderer", 5, 1, { hidden: true }], ["gpu_tiler_percent", "Tiler", 4, 1, { hidden: true }],
    ["cpu_utilization_percent", "CPU", 2, 1], ["ane_utilization_percent", "Neural Engine (estimate)", 3, 1]] },
  { id: "clock", title: "GPU clock", unit: "MHz", lines: [
    ["gpu_clock_mhz", "Clock while active", 1, 1], ["gpu_max_clock_mhz", "Highest", 8, 1, { dash: true }]] },
  { id: "power", title: "Power by rail", unit: "W", stack: [
    ["gpu_power_mw", "GPU", 1, K.mw], ["cpu_power_mw", "CPU", 2, K.mw], ["memory_power_mw", "DRAM", 6, K.mw],
    ["ane_power_mw", "Neural Engine", 3, K.mw], ["gpu_sram_power_mw", "GPU SRAM", 5, K.mw],
    ["encode_power_mw", "Encoder", 4, K.mw], ["decode_power_mw", "Decoder", 7, K.mw]], lines: [
    ["system_power_mw", "Whole Mac", 8, K.mw], ["gpu_power_limit_mw", "GPU cap", 7, K.mw, { dash: true }]] },
  { id: "memory", title: "GPU memory", unit: "GB", lines: [
    ["memory_used_bytes", "In use", 1, K.bytes, { fill: true }], ["memory_allocated_bytes", "Allocated", 5, K.bytes],
    ["system_memory.used_bytes", "RAM used by everything", 8, K.bytes, { hidden: true }],
    ["memory_total_bytes", "Limit", 7, K.bytes, { dash: true }]] },
  { id: "bandwidth", title: "Memory bandwidth", unit: "GB/s", lines: [
    ["memory_read.bytes_per_s", "Read", 1, K.rate], ["memory_write.bytes_per_s", "Write", 2, K.rate],
    ["memory_max_bytes_per_s", "As sold", 8, K.rate, { hidden: true, dash: true }]] },
  { id: "agents", title: "Bandwidth by part of the chip", unit: "GB/s", optional: true, stack: AGENTS.map((a, i) =>
    ["agent." + a, { gpu: "GPU", cpu: "CPU", ane: "Neural Engine", media: "Media", display: "Display", io: "I/O" }[a],
      [1, 2, 3, 4, 5, 8][i], K.rate]), lines: [] },
  { id: "thermal", title: "Temperature", unit: "\u00b0C", free: true, lines: [
    ["gpu_temperature_celsius", "GPU mean", 1, 1], ["gpu_temperature_max_celsius", "GPU highest", 7, 1],
    ["cpu_temperature_celsius", "CPU mean", 2, 1]] },
  { id: "throttle", title: "Throttling", unit: "%", range: [0, 102], lines: [
    ["gpu_throttle.cltm_ratio", "Clock held down by heat", 7, K.ratio], ["gpu_throttle.ppm_percent", "Power budget granted", 3, 1]] },
];
const COLUMNS = [...new Set(CHARTS.flatMap((c) => [...(c.stack || []), ...c.lines].map((l) => l[0])))];
const PRESSURE = ["nominal", "moderate", "heavy", "trapping", "sleeping"];

const $ = (id) => document.getElementById(id);
const state = { seconds: 300, zoom: null, paused: false, t: [], columns: {}, gaps: {}, latest: null, colours: {}, drawing: false, step: 1, asked: 0, hidden: new Set(), heard: Date.now(), pause: 1000 };

function element(tag, text, className) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (className) e.className = className;
  return e;
}
const escape = (text) => String(text).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" }[c]));
const local = (t) => t * 1000 - new Date(t * 1000).getTimezoneOffset() * 60000;      // plotly shows numbers as UTC
const unixOf = (shown) => (shown + new Date(shown).getTimezoneOffset() * 60000) / 1000;
const why = (reason) => REASONS[reason] || reason || "not available";

// ---- figures of a snapshot

function figure(s, path) {
  if (path.startsWith("agent.")) {
    const agent = path.slice(6), read = s["memory_" + agent + "_read"], write = s["memory_" + agent + "_write"];
    return read && write ? read.bytes_per_s + write.bytes_per_s : null;
  }
  const dot = path.indexOf(".");
  const value = s[dot < 0 ? path : path.slice(0, dot)];
  if (value === null || value === undefined) return null;
  const found = dot < 0 ? value : value[path.slice(dot + 1)];
  return found === undefined ? null : found;
}
function reasonOf(s, path) {
  const field = path.startsWith("agent.") ? "memory_" + path.slice(6) + "_read" : path.split(".")[0];
  return (s.reasons || {})[field] || "chip";
}
const timeText = (s) => (s < 1 ? (s > 0 && s < 0.0005 ? "<1" : (1000 * s).toFixed(0)) + " ms" : s < 100 ? s.toFixed(1) + " s" : s < 6000 ? (s / 60).toFixed(1) + " min" : (s / 3600).toFixed(1) + " h");
const SMALLER = { W: ["mW", 1000], GB: ["MB", 1024], "GB/s": ["MB/s", 1000] };
// [text, unit]: three digits; what would round to 0.00 has the smaller unit, so that only 0 reads as 0.
function parts(value, unit) {
  const [small, times] = SMALLER[unit] || [], size = Math.abs(value);
  if (small && value !== 0 && size < 0.9995) return [value * times < 9.95 ? String(Number((value * times).toPrecision(2))) : (value * times).toFixed(0), small];
  return [value.toFixed(value === 0 || unit === "%" || unit === "MHz" || size >= 99.95 ? 0 : size < 9.95 ? 2 : 1), unit];
}
const say = (value, unit) => (value === null || value === undefined ? "\u2013" : parts(value, unit).join("\u00a0"));
const sizeText = (bytes) => parts(bytes * K.bytes, "GB");
const wattText = (mw) => parts(mw * K.mw, "W");
const rateText = (b) => parts(b * K.rate, "GB/s");

// ---- tiles

const TILES = [
  ["gpu_active_ratio", "GPU active", (v) => [(100 * v).toFixed(0), "%"], (s) => known(s.gpu_scaled_ratio, (v) => (100 * v).toFixed(0) + " % by clock")],
  ["gpu_clock_mhz", "GPU clock", (v) => [v, "MHz"], (s) => known(s.gpu_max_clock_mhz, (v) => "of " + v + " MHz")],
  ["gpu_power_mw", "GPU power", wattText, (s) => known(s.system_power_mw, (v) => "whole Mac " + wattText(v).join(" "))],
  ["memory_used_bytes", "GPU memory", sizeText, (s) => known(s.memory_total_bytes, (v) => "of " + sizeText(v).join(" "))],
  ["memory_read.bytes_per_s", "Memory read", (v, s) => [(s.memory_read.saturated ? ">" : s.memory_read.estimated ? "~" : "") + rateText(v)[0], rateText(v)[1]],
    (s) => known(s.memory_write, (v) => "written " + (v.saturated ? ">" : v.estimated ? "~" : "") + rateText(v.bytes_per_s).join(" "))],
  ["gpu_temperature_celsius", "GPU temperature", (v) => [v.toFixed(0), "\u00b0C"], (s) => [known(s.gpu_temperature_max_celsius, (v) => "max " + v.toFixed(0) + " \u00b0C"), known(s.thermal_pressure_level, (v) => PRESSURE[v])].filter(Boolean).join(", ")],
  ["ane_utilization_percent", "Neural Engine", (v) => ["~" + v, "%"], (s) => known(s.ane_power_mw, (v) => wattText(v).join(" ")) || "power: " + why(reasonOf(s, "ane_power_mw"))],
  ["cpu_utilization_percent", "CPU", (v) => [v, "%"], (s) => known(s.cpu_power_mw, (v) => wattText(v).join(" ")) || "power: " + why(reasonOf(s, "cpu_power_mw"))],
];
const known = (value, text) => (value === null || value === undefined ? "" : text(value));

function makeTiles() {
  for (const [field, label] of TILES) {
    const tile = element("div", undefined, "tile");
    tile.dataset.field = field;
    tile.append(element("div", label, "label"), element("div", "\u2013", "value"), element("div", "", "more"));
    $("tiles").append(tile);
  }
}
function drawTiles(s) {
  TILES.forEach(([field, , format, more], i) => {
    const tile = $("tiles").children[i], value = figure(s, field);
    tile.classList.toggle("missing", value === null);
    const place = tile.querySelector(".value");
    if (value === null) {
      place.textContent = "\u2013";
      tile.querySelector(".more").textContent = why(reasonOf(s, field));
    } else {
      const [text, unit] = format(value, s);
      place.replaceChildren(document.createTextNode(text), element("small", unit));
      tile.querySelector(".more").textContent = more(s);
    }
  });
}

// ---- tables

function table(id, head, rows, caption) {
  const thead = element("thead"), tbody = element("tbody"), tr = element("tr");
  for (const text of head) { const th = element("th", text); th.scope = "col"; tr.append(th); }
  thead.append(tr);
  for (const row of rows) {
    const line = element("tr");
    for (const cell of row) line.append(cell instanceof Node ? cell : element("td", cell));
    tbody.append(line);
  }
  const parts = [thead, tbody];
  if (caption) parts.unshift(element("caption", caption));
  $(id).replaceChildren(...(rows.length ? parts : [element("caption", caption || "nothing")]));
}
function drawTables(s) {
  const cell = (c, field, text) => (c[field] === null ? element("td", why((c.reasons || {})[field]), "why") : text(c[field]));
  table("cpu", ["group", "kind", "cores", "use", "clock", "power"], (s.cpu_clusters || []).map((c) => [
    c.name || "all", c.core_type || "\u2013", cell(c, "cores", String), cell(c, "utilization_percent", (v) => v + " %"),
    cell(c, "clock_mhz", (v) => v + " MHz"), cell(c, "power_mw", (v) => wattText(v).join(" "))]),
  s.cpu_clusters ? "" : why(reasonOf(s, "cpu_clusters")));
  const asked = s.parts.includes("processes");
  table("processes", ["name", "pid", "GPU", "GPU time", "memory"], (s.processes || []).slice(0, 25).map((p) => [
    p.name, String(p.pid), p.gpu_percent === null ? "\u2013" : p.gpu_percent.toFixed(0) + " %",
    timeText(p.gpu_time_ns / 1e9), p.footprint_bytes === null ? element("td", "another user's", "why") : sizeText(p.footprint_bytes).join(" ")]),
  asked ? (s.processes && !s.processes.length ? "none uses the GPU" : s.processes ? (s.processes.length > 25 ? "the busiest 25 of " + s.processes.length : "") : why(reasonOf(s, "processes"))) : "Not asked for: start the exporter with --processes.");
  const missing = Object.entries(s.reasons).filter(([, reason]) => reason !== "not_asked"), same = new Map();
  for (const [field, reason] of missing) {                       // figures that lack for one reason share a line
    const detail = (s.messages || {})[field] || "", key = reason + "\n" + detail;
    same.set(key, [[...(same.get(key) || [[]])[0], field], why(reason), detail]);
  }
  table("missing", ["figure", "reason", "detail"], [...same.values()].map(([fields, ...rest]) => [fields.join(", "), ...rest]), "");
  $("process-card").classList.toggle("wide", document.querySelectorAll(".grid .card:not([hidden]):not(#process-card):not(#missing-card)").length % 2 === 0);
  $("missing-card").querySelector("h2").textContent = "Not available on this Mac now (" + missing.length + ")";
}

// ---- charts

function readColours() {
  const css = getComputedStyle(document.documentElement);
  for (const name of ["card", "ink", "soft", "line", "grid", "gap", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"]) {
    state.colours[name] = css.getPropertyValue("--" + name).trim();
  }
}
function makeCharts() {
  for (const chart of [...CHARTS.slice(0, 2), { id: "states", title: "Clock states now", unit: "%" }, ...CHARTS.slice(2)]) {
    const card = element("article", undefined, "card");
    card.id = chart.id + "-card";
    const top = element("div", undefined, "top");
    const title = element("h2", chart.title);
    title.append(element("span", chart.unit));
    top.append(title, element("div", "", "now"));
    const place = element("div", undefined, "chart");
    place.id = chart.id;
    place.tabIndex = 0;
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", chart.title);
    place.addEventListener("keydown", onKey);
    card.append(top, place, legend(chart), element("div", "", "note"));
    $("charts").append(card);
  }
}
// The legend is ours: buttons, so that the keyboard reaches them, with the value now.
function legend(chart) {
  const place = element("div", undefined, "legend");
  for (const [column, name, colour, , options = {}] of [...(chart.stack || []), ...(chart.lines || [])]) {
    const button = element("button"), key = chart.id + " " + column, swatch = element("i");
    button.type = "button";
    button.dataset.column = column;
    swatch.dataset.colour = colour;
    if (options.dash) swatch.className = "dash";
    if (options.hidden) state.hidden.add(key);
    button.setAttribute("aria-pressed", String(!options.hidden));
    button.append(swatch, element("span", name), element("b", ""));
    button.addEventListener("click", () => {
      if (!state.hidden.delete(key)) state.hidden.add(key);
      button.setAttribute("aria-pressed", String(!state.hidden.has(key)));
      draw();
    });
    place.append(button);
  }
  return place;
}
function drawLegend(chart, s) {
  const said = [];
  for (const button of $(chart.id + "-card").querySelectorAll(".legend button")) {
    const [column, name, , factor] = [...(chart.stack || []), ...chart.lines].find((l) => l[0] === button.dataset.column);
    const value = figure(s, column);
    button.hidden = value === null && !present(state.columns[column] || []);
    button.querySelector("b").textContent = value === null ? "" : say(value * factor, chart.unit);
    if (value !== null && !state.hidden.has(chart.id + " " + column)) said.push(name + " " + say(value * factor, chart.unit));
  }
  $(chart.id).setAttribute("aria-label", chart.title + ": " + (said.join(", ") || "no value now"));
}
function limits(chart, data) {
  if (chart.range) return chart.range;
  let low = Infinity, high = -Infinity;
  const sums = new Map();
  for (const d of data) {
    d.y.forEach((v, i) => {
      if (v === null) return;
      const sum = d.stackgroup ? (sums.get(d.x[i]) || 0) + v : v;
      if (d.stackgroup) sums.set(d.x[i], sum);
      low = Math.min(low, v);
      high = Math.max(high, sum);
    });
  }
  if (high < low) return [0, 1];
  return chart.free ? [Math.floor(low - 3), Math.ceil(high + 3)] : [0, high > 0 ? high * 1.1 : 1];
}
const plotWidth = () => Math.max(200, $("utilisation").clientWidth - 50);
// Half the distance of two samples, in pixels: inside a gap the label must not show the values at its edge.
function reach() {
  const t = state.t.slice(-60), steps = t.slice(1).map((v, i) => v - t[i]).sort((a, b) => a - b), [a, b] = view();
  return Math.max(2, Math.ceil(0.55 * plotWidth() * (steps[steps.length >> 1] || 1) * 1000 / (b - a)));
}
function baseLayout(chart) {
  const c = state.colours, axis = { gridcolor: c.grid, zerolinecolor: c.grid, linecolor: c.line, tickfont: { size: 11 }, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 40, r: 8, t: 10, b: 24 },
    font: { family: "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif", size: 12, color: c.soft },
    hovermode: "x unified", hoverdistance: reach(), hoverlabel: { bgcolor: c.card, bordercolor: c.line, font: { color: c.ink, size: 12 } },
    uirevision: "keep", modebar: { bgcolor: "rgba(0,0,0,0)", color: c.soft, activecolor: c.ink },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    xaxis: { ...axis, type: "date", range: view(), hoverformat: "%H:%M:%S", tickformat: view()[1] - view()[0] < 240000 ? "%H:%M:%S" : "%H:%M", showspikes: true, spikemode: "across", spikethickness: 1,
      spikedash: "dot", spikecolor: c.soft, uirevision: String(state.zoom) + state.seconds, nticks: innerWidth < 600 ? 4 : 7 },
    yaxis: { ...axis, rangemode: "tozero", range: chart.range, fixedrange: true },
    showlegend: false,
  };
}
// Buttons by name: among plotly's own there is one that sends the chart to a server.
const CONFIG = { displaylogo: false, responsive: true, plotlyServerURL: "",
  modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]] };
function newest() { return state.t.length ? state.t[state.t.length - 1] : Date.now() / 1000; }
// While less than the range is known, the view begins with what there is.
function since() { return Math.max(newest() - state.seconds, Math.min(state.t.length ? state.t[0] : Infinity, newest() - 60)); }
function view() { return state.zoom || [local(since()), local(newest())]; }

function trace(chart, line, t, y) {
  const [column, name, colour, , options = {}] = line;
  return { type: "scatter", mode: "lines", name, x: t, y, connectgaps: false, legendgroup: column,
    line: { color: state.colours["c" + colour], width: options.dash ? 1.5 : 1.8, dash: options.dash ? "dot" : "solid" },
    ...lonely(y, state.colours["c" + colour]), hovertemplate: "%{y:.4~g} " + escape(chart.unit) };
}
// A point between two gaps has no line: it gets a dot.
function lonely(y, color) {
  if (y.every((v) => v !== null)) return {};
  const none = (v) => v === null || v === undefined;
  return { mode: "lines+markers", marker: { color, size: y.map((v, i) => (!none(v) && none(y[i - 1]) && none(y[i + 1]) ? 4 : 0)) } };
}
function runs(length, here) {
  const found = [];
  let start = null;
  for (let i = 0; i <= length; i++) {
    const yes = i < length && here(i);
    if (yes && start === null) start = i;
    if (!yes && start !== null) {
      found.push([start, i]);
      start = null;
    }
  }
  return found;
}
// plotly fills across a gap, so a filled line is drawn run by run.
function lineTraces(chart, line, t, y) {
  const found = (line[4] || {}).fill ? runs(y.length, (i) => y[i] !== null) : [];
  if (!found.length || found.length > 30) return [trace(chart, line, t, y)];
  const fill = { fill: "tozeroy", fillcolor: alpha(state.colours["c" + line[2]], 0.13) };
  return found.map(([a, b]) => ({ ...trace(chart, line, t.slice(a, b), y.slice(a, b)), ...fill, mode: b - a === 1 ? "markers" : "lines" }));
}
function alpha(hex, a) {
  const n = parseInt(hex.slice(1), 16);
  return "rgba(" + (n >> 16) + "," + ((n >> 8) & 255) + "," + (n & 255) + "," + a + ")";
}
const scaled = (column, factor) => (state.columns[column] || []).map((v) => (v === null || v === undefined ? null : v * factor));
const present = (y) => y.some((v) => v !== null);

const shown = (chart, lines) => lines.filter((line) => !state.hidden.has(chart.id + " " + line[0]))
  .map((line) => [line, scaled(line[0], line[3])]).filter(([, y]) => present(y));

// A stack is drawn run by run: where a rail is missing the whole stack has a gap, for a sum without it would be wrong.
function stackTraces(chart, t) {
  const rails = shown(chart, chart.stack);
  const whole = runs(t.length, (i) => rails.length && rails.every(([, y]) => y[i] !== null));
  return whole.flatMap(([a, b], run) => rails.map(([line, y]) => ({
    ...trace(chart, line, t.slice(a, b), y.slice(a, b)), stackgroup: "run" + run, mode: b - a === 1 ? "markers" : "lines",
    marker: { size: 3, color: state.colours["c" + line[2]] }, line: { width: 0.8, color: state.colours["c" + line[2]] },
    fillcolor: alpha(state.colours["c" + line[2]], 0.6) })));
}
// What the hover label says inside a gap: which line is missing there, and why.
const spansOf = (column) => state.gaps[column.startsWith("agent.") ? "memory_" + column.slice(6) + "_read.bytes_per_s" : column] || [];
function gapTrace(chart, t, low) {
  const x = [], text = [], lines = [...(chart.stack || []), ...chart.lines].filter(([column]) =>
    !state.hidden.has(chart.id + " " + column) && present(state.columns[column] || []));
  for (let i = 0; i < t.length; i++) {
    const missing = lines.filter(([column]) => state.columns[column][i] === null);
    if (!missing.length) continue;
    x.push(t[i]);
    text.push(missing.map(([column, name]) => {
      const span = spansOf(column).find(([a, b]) => a - 0.01 <= state.t[i] && state.t[i] <= b + 0.01);
      return escape(name) + ": " + escape(span ? why(span[2]) : "no sample was taken");
    }).join("<br>"));
  }
  return x.length ? [{ type: "scatter", mode: "markers", x, y: x.map(() => low), text, name: "gap", marker: { size: 6, opacity: 0 },
    hovertemplate: "%{text}<extra></extra>" }] : [];
}
const near = (x, y) => (x !== undefined && Math.abs(x - y) < Math.max(30, 4 * state.step) ? x : y);
function gapShapes(chart, columns) {
  const [from, to] = view().map(unixOf), spans = new Map();
  for (const column of columns) {
    if (!present(state.columns[column] || [])) continue;        // missing for the whole range: the note says so
    for (const [a, b, reason] of spansOf(column)) {
      const key = a.toFixed(1) + reason;
      if (b < from || a > to || spans.has(key)) continue;
      const before = state.t.filter((x) => x < a - 0.01).pop(), after = state.t.find((x) => x > b + 0.01);
      spans.set(key, [near(before, a), near(after, b), reason]);      // from the last value to the next
    }
  }
  for (let i = 1; i < state.t.length; i++) {                     // nobody measured
    const a = state.t[i - 1], b = state.t[i];
    if (b - a > Math.max(30, 4 * state.step)) spans.set("t" + a, [a, b, "no sample was taken"]);
  }
  return [...spans.values()].slice(-12).map(([a, b, reason]) => ({
    type: "rect", xref: "x", yref: "paper", x0: local(Math.max(a, from)), x1: local(Math.max(b, a + (to - from) / 300)), y0: 0, y1: 1,
    fillcolor: state.colours.gap, line: { width: 0 }, layer: "below",
    label: { text: (b - a) / (to - from) * plotWidth() > 5.5 * why(reason).length ? escape(why(reason)) : "", font: { size: 10, color: state.colours.soft }, textposition: "top center" } }));
}
// Somebody points at it: a redraw would take the hover label away and break a drag.
const busy = (place) => matchMedia("(hover: hover)").matches && place.matches(":hover") && place.dataset.listening;
function visible(place) {
  const box = place.getBoundingClientRect();
  return box.bottom > -300 && box.top < innerHeight + 300;
}
function drawChart(chart, t, force) {
  const place = $(chart.id), all = [...(chart.stack || []), ...chart.lines], columns = all.map((l) => l[0]);
  const s = state.latest, lacking = all.filter(([column]) => !present(state.columns[column] || []) && (!s || figure(s, column) === null));
  $(chart.id + "-card").hidden = Boolean(chart.optional) && lacking.length === all.length;
  note(chart, lacking);
  place.hidden = Boolean(s) && lacking.length === all.length && all.every(([column]) => !PASSING.includes(reasonOf(s, column)));
  if ($(chart.id + "-card").hidden || place.hidden || !visible(place) || (!force && busy(place))) return;
  const data = (chart.stack ? stackTraces(chart, t) : []).concat(
    shown(chart, chart.lines).flatMap(([line, y]) => lineTraces(chart, line, t, y)));
  const layout = { ...baseLayout(chart), shapes: gapShapes(chart, columns) };
  layout.yaxis.range = limits(chart, data);
  layout.yaxis.showticklabels = data.length > 0;
  if (state.zoom && !state.t.length) layout.annotations = [{ text: "nothing was measured in this time", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }];
  data.push(...gapTrace(chart, t, layout.yaxis.range[0]));
  Plotly.react(place, data, layout, CONFIG).then(() => listen(place));
}
function note(chart, lacking) {
  const card = $(chart.id + "-card"), s = state.latest, place = card.querySelector(".note"), groups = new Map();
  if (!s) return;
  for (const [column, name] of lacking) {
    const text = why(reasonOf(s, column));
    groups.set(text, [...(groups.get(text) || []), name]);
  }
  place.replaceChildren(...[...groups].flatMap(([text, names], i) => [
    document.createTextNode(i ? "; " : "Missing: "), element("b", names.join(", ")), document.createTextNode(" \u2013 " + text)]));
  drawLegend(chart, s);
}
function drawStates() {
  const place = $("states"), s = state.latest, card = $("states-card");
  if (!s) return;
  const states = s.gpu_states || [];
  card.querySelector(".note").textContent = states.length ? "" : "Missing: " + why(reasonOf(s, "gpu_states"));
  const top = states.reduce((a, b) => (b.ratio > (a ? a.ratio : -1) ? b : a), null);
  const now = top ? "most: " + (top.mhz === null ? top.name : top.mhz + " MHz") + " " + (100 * top.ratio).toFixed(0) + "\u00a0%" : "";
  card.querySelector(".now").textContent = now;
  place.setAttribute("aria-label", "Clock states now: " + (now || "no value"));
  place.hidden = !states.length;
  if (place.hidden || !visible(place)) return;
  const named = states.filter((x, i) => x.ratio > 0 || x.mhz !== null || i === 0), tight = place.clientWidth < 34 * named.length;
  const base = baseLayout({ unit: "%", range: [0, 102] });
  const clock = (x) => (x.mhz !== null ? x.mhz : ["OFF", "IDLE", "DOWN"].includes(x.name) ? "idle" : "?");
  const data = [{ type: "bar", x: named.map((x) => escape(x.name) + (tight ? " \u00b7 " : "<br>") + clock(x)), y: named.map((x) => 100 * x.ratio),
    text: named.map((x) => (x.ratio >= 0.005 ? (100 * x.ratio).toFixed(0) : "")), textposition: "outside", cliponaxis: false, textangle: 0,
    marker: { color: named.map((x) => state.colours[x.mhz === null ? "c8" : "c1"]) }, hovertemplate: "%{y:.1f} %<extra></extra>" }];
  Plotly.react(place, data, { ...base, height: place.clientHeight, bargap: 0.25, hovermode: "closest", dragmode: false, margin: { l: 44, r: 8, t: 16, b: tight ? 64 : 40 },
    xaxis: { type: "category", tickfont: { size: 10 }, tickangle: tight ? -90 : 0, fixedrange: true, linecolor: state.colours.line },
    yaxis: { ...base.yaxis, range: [0, 112], tickvals: [0, 25, 50, 75, 100] } }, { ...CONFIG, displayModeBar: false });
}
function draw(force = true) {
  state.force = state.force || force;
  if (state.drawing || document.hidden) return;
  state.drawing = true;
  requestAnimationFrame(() => {
    const t = state.t.map(local), forced = state.force;
    state.drawing = state.force = false;
    for (const chart of CHARTS) drawChart(chart, t, forced);
    drawStates();
  });
}
function listen(place) {
  if (place.dataset.listening) return;
  place.dataset.listening = "1";
  place.on("plotly_relayout", (e) => {
    if (e["xaxis.range[0]"] !== undefined) zoomTo([toNumber(e["xaxis.range[0]"]), toNumber(e["xaxis.range[1]"])]);
    else if (e["xaxis.autorange"]) goLive();
  });
  place.on("plotly_doubleclick", () => { goLive(); return false; });
}
// plotly answers with numbers or with "2026-11-20 12:00:00.123", which is in the same shifted time
const toNumber = (v) => (typeof v === "number" ? v : Date.parse(String(v).replace(" ", "T") + (String(v).length > 10 ? "Z" : "")));

// ---- time range, live, keyboard

function zoomTo(range) {
  if (!(range[1] - range[0] > 500)) return;
  state.zoom = range;
  $("live").setAttribute("aria-pressed", "false");
  draw();
  load();
}
function goLive() {
  state.zoom = null;
  $("live").setAttribute("aria-pressed", "true");
  load();
}
function onKey(event) {
  const [a, b] = view(), width = b - a;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const nearer = state.zoom ? [a + width / 4, b - width / 4] : [a + width / 2, b];       // live: the newest stays in view
  const moves = { ArrowLeft: [a - width / 5, b - width / 5], ArrowRight: [a + width / 5, b + width / 5],
    "+": nearer, "=": nearer, "-": state.zoom ? [a - width / 2, b + width / 2] : [a - width, b] };
  if (moves[event.key]) zoomTo(moves[event.key]);
  else if (event.key === "Escape" || event.key === "0" || event.key === "Home") goLive();
  else return;
  event.preventDefault();
}
function setRange(seconds) {
  state.seconds = seconds;
  for (const b of $("ranges").children) b.setAttribute("aria-pressed", String(Number(b.dataset.seconds) === seconds));
  goLive();
}

// ---- data

// Live: the range up to now, which events then prolong. Zoomed: what is in view and a fifth more, as finely as it is kept.
async function load() {
  const points = Math.max(120, Math.min(600, innerWidth)), mine = ++state.asked, [a, b] = (state.zoom || []).map(unixOf);
  const range = state.zoom ? [["seconds", Math.min(1.2 * (b - a), 1e6)], ["until", b + 0.1 * (b - a)]] : [["seconds", state.seconds]];
  try {
    const answer = await fetch("api/history?" + new URLSearchParams([...range, ["points", points]]), { cache: "no-store" });
    if (!answer.ok) throw new Error("HTTP " + answer.status);
    const h = await answer.json();
    if (mine !== state.asked) return;           // something else was asked for since
    state.t = h.time_unix_s;
    state.columns = h.columns;
    for (const agent of AGENTS) {
      const read = h.columns["memory_" + agent + "_read.bytes_per_s"] || [], write = h.columns["memory_" + agent + "_write.bytes_per_s"] || [];
      state.columns["agent." + agent] = read.map((v, i) => (v === null || write[i] === null ? null : v + write[i]));
    }
    state.gaps = h.gaps;
    state.step = h.step_s;
    draw();
  } catch (error) {
    status("bad", "history: " + error.message);
  }
}
function append(s) {
  const t = s.time_unix_s, last = newest();
  if (state.zoom || (state.t.length && t <= last)) return;
  if (state.t.length && t - last > Math.max(30, 4 * state.step)) {
    state.t.push(last + 0.001);
    for (const column of COLUMNS) (state.columns[column] = state.columns[column] || []).push(null);
  }
  state.t.push(t);
  for (const column of COLUMNS) {
    const list = (state.columns[column] = state.columns[column] || []);
    while (list.length < state.t.length - 1) list.push(null);
    const value = figure(s, column);
    list.push(value);
    if (value === null) {
      const reason = reasonOf(s, column), spans = (state.gaps[column] = state.gaps[column] || []), end = spans[spans.length - 1];
      if (end && end[2] === reason && end[1] >= last - 0.01) end[1] = t; else spans.push([t, t, reason]);
      if (spans.length > 50) spans.shift();
    }
  }
  let old = 0;
  while (old < state.t.length && state.t[old] < t - state.seconds - 5) old++;
  if (old) {
    state.t.splice(0, old);
    for (const column of COLUMNS) state.columns[column].splice(0, old);
  }
  if (state.t.length > 2000) load();
}
// Only the text is a live region: a screen reader must not speak the time once a second.
function status(kind, text, more = "") {
  $("status").className = kind;
  if ($("status-text").textContent !== text) $("status-text").textContent = text;
  $("status-more").textContent = more;
}
function show(s) {
  state.latest = s;
  append(s);
  drawTiles(s);
  drawTables(s);
  draw(false);
  const name = s.gpu_name || s.system_chip_name || "Apple GPU";
  $("name").textContent = name + (s.gpu_core_count ? ", " + s.gpu_core_count + " GPU cores" : "");
  document.title = (s.gpu_active_ratio === null ? "" : (100 * s.gpu_active_ratio).toFixed(0) + " % \u00b7 ") + name;
  $("about").textContent = [s.system_model, s.system_os_version && "macOS " + s.system_os_version, s.source].filter(Boolean).join(" \u00b7 ");
  status("ok", "live", ", " + new Date(local(s.time_unix_s)).toISOString().slice(11, 19) + (s.interval_s ? ", rates over " + s.interval_s.toFixed(1) + " s" : ""));
}
function connect() {
  const events = new EventSource("api/events");
  let broken = false;
  state.heard = Date.now();
  events.onopen = () => { if (broken) load(); broken = false; };
  events.onmessage = (event) => {
    const s = JSON.parse(event.data), now = Date.now();
    if ($("status").className === "ok") state.pause = Math.max(1000, now - state.heard);
    state.heard = now;
    if (s.error) status("bad", s.error); else show(s);
    document.documentElement.dataset.updates = String(Number(document.documentElement.dataset.updates || 0) + 1);
  };
  events.onerror = () => {
    broken = true;
    status("bad", "the exporter does not answer; trying again");
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  };
}

// A Mac that went to sleep, a cable that was pulled: nothing ends the connection, and nothing comes.
setInterval(() => {
  if (Date.now() - state.heard > 5000 + 3 * state.pause && $("status").className === "ok") status("bad", "no new figures", $("status-more").textContent);
}, 1000);

// ---- colours

const THEMES = ["auto", "light", "dark"];
function paint() {
  const chosen = localStorage.getItem("theme") || "auto", dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = chosen === "auto" ? (dark ? "dark" : "light") : chosen;
  $("theme").textContent = { auto: "\u25d0", light: "\u25cb", dark: "\u25cf" }[chosen] + " " + chosen[0].toUpperCase() + chosen.slice(1);
  $("theme").setAttribute("aria-label", "Colours: " + chosen);
  readColours();
  draw();
  for (const swatch of document.querySelectorAll(".legend i")) swatch.style.setProperty("--swatch", state.colours["c" + swatch.dataset.colour]);
}

for (const [seconds, text] of RANGES) {
  const button = element("button", text);
  button.type = "button";
  button.dataset.seconds = seconds;
  button.setAttribute("aria-pressed", String(seconds === state.seconds));
  button.addEventListener("click", () => setRange(seconds));
  $("ranges").append(button);
}
$("live").addEventListener("click", () => (state.zoom ? goLive() : zoomTo(view())));
$("theme").addEventListener("click", () => {
  localStorage.setItem("theme", THEMES[(THEMES.indexOf(localStorage.getItem("theme") || "auto") + 1) % 3]);
  paint();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
document.addEventListener("visibilitychange", () => draw());
addEventListener("resize", () => draw());
addEventListener("scroll", () => draw(false), { passive: true });
makeTiles();
makeCharts();
paint();
load();
connect();
