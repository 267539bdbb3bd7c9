// The status page: shows what the host tells once a second, and rows as they are committed. Everything from outside is
// put in as text, never as markup.
"use strict";

const SPARK_POINTS = 120;
const ROWS_SHOWN = 25;
const STAGES = ["early", "final", "corrected", "retracted"];
const seen = new Map();

const byId = (id) => document.getElementById(id);
const number = (n) => (n ?? 0).toLocaleString("en");

function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 0) return "ahead";
  if (ms < 10_000) return (ms / 1000).toFixed(1) + " s";
  if (ms < 600_000) return Math.round(ms / 1000) + " s";
  if (ms < 36e5 * 48) return Math.round(ms / 60_000) + " min";
  return Math.round(ms / 864e5) + " days";
}

function bytes(n) {
  if (n === null || n === undefined) return "–";
  const power = Math.min(3, Math.floor(Math.log2(Math.max(1, n)) / 10));
  return (n / 1024 ** power).toFixed(power && n < 10 * 1024 ** power ? 1 : 0) + " " + ["bytes", "KiB", "MiB", "GiB"][power];
}

const instant = (text) => (text ? text.replace("T", " ").replace(/\.?\d*Z$/, "") : "–");
const fromMs = (ms) => instant(new Date(ms).toISOString());

// What turns the direction of text is shown as what it is.
const plain = (text) =>
  String(text ?? "").replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => "\\u{" + c.codePointAt(0).toString(16) + "}");

function cell(row, text, kind) {
  const td = document.createElement("td");
  td.textContent = plain(text);
  td.title = plain(text);
  if (kind) td.className = kind;
  row.append(td);
}

function bars(list, pairs, none) {
  list.replaceChildren();
  for (const [name, value] of pairs.length ? pairs : [[none, ""]]) {
    const dt = document.createElement("dt");
    const dd = document.createElement("dd");
    dt.textContent = name;
    dd.textContent = value;
    list.append(dt, dd);
  }
}

const MOOD = { running: "good", ended: "good", paused: "warn", starting: "warn", suspended: "bad", failed: "bad" };

function cardOf(name) {
  let card = seen.get(name);
  if (!card) {
    const root = byId("pipeline").content.firstElementChild.cloneNode(true);
    root.dataset.pipeline = name;
    byId("pipelines").append(root);
    card = { root, rates: [], events: null, at: 0 };
    seen.set(name, card);
  }
  return card;
}

function show(p, now) {
  const card = cardOf(p.pipeline);
  const part = (selector) => card.root.querySelector(selector);
  part(".name").textContent = p.pipeline;
  part(".state").textContent = p.state;
  part(".state").className = "state badge " + (MOOD[p.state] || "");
  const gone = (p.sinks_away || []).map((s) => ["sink " + s.sink, s.why]);
  gone.push(...(p.sources_away || []).map((s) => ["source " + s.source, s.why]));
  if (p.store_away) gone.push(["the object store", p.store_away.why]);
  const away = gone.map(([who, why]) => who + " is away, tried again: " + why).join("\n");
  const why = p.failure || (p.suspended && p.suspended.why + "\n" + p.suspended.first_fault) || away;
  part(".why").textContent = why;
  part(".why").hidden = !why;
  part(".way").hidden = p.state !== "suspended";
  part(".way code").textContent = "tidemill deploy | rollback | resume " + p.pipeline;
  part(".backlog").textContent = p.backlog_bytes === undefined ? "–" : bytes(p.backlog_bytes);
  const events = p.events ?? 0;
  if (card.events !== null && now > card.at) {
    card.rates.push(Math.max(0, ((events - card.events) * 1000) / (now - card.at)));
    card.rates.splice(0, card.rates.length - SPARK_POINTS);
  }
  card.events = events;
  card.at = now;
  part(".rate").textContent = card.rates.length ? number(Math.round(card.rates.at(-1))) : "–";
  const most = Math.max(1, ...card.rates);
  const x = (i) => (240 * (i + SPARK_POINTS - card.rates.length)) / (SPARK_POINTS - 1);
  const points = card.rates.map((r, i) => x(i).toFixed(1) + "," + (38 - (36 * r) / most).toFixed(1));
  part(".spark polyline").setAttribute("points", points.join(" "));
  part(".lag").textContent = duration(p.watermark_lag_ms);
  part(".fresh").textContent = p.sealed_at ? duration(Math.max(0, now - Date.parse(p.sealed_at))) + " ago" : "–";
  part(".keys").textContent = number(p.live_keys);
  part(".events").textContent = number(events);
  const counters = p.counters || {};
  const fold = counters.fold || {};
  part(".duplicates").textContent = number((fold.duplicates || 0) + (counters.copies || 0));
  bars(part(".stages"), STAGES.map((s, i) => [s, number((fold.revisions || [])[i])]), "none");
  const dead = new Map();
  for (const [reason, n] of [...Object.entries(counters.dead || {}), ...Object.entries(counters.dead_by_rule || {})]) {
    dead.set(reason, (dead.get(reason) || 0) + n);
  }
  bars(part(".dead"), [...dead].filter(([, n]) => n > 0).map(([reason, n]) => [reason, number(n)]), "none");
  const lag = (s) => (s.lag_epochs > 1 ? number(s.lag_epochs) + " epochs behind" : "up to date");
  bars(part(".sinks"), (p.sinks || []).map((s) => [s.sink, lag(s)]), "none");
  const body = part(".deployments tbody");
  body.replaceChildren();
  const live = p.deployments || [];
  for (const d of [...live].reverse()) {
    const row = document.createElement("tr");
    cell(row, String(d.number), "n");
    cell(row, d.plugin);
    cell(row, d.from ? instant(d.from) : "the beginning");
    cell(row, d.policy);
    cell(row, instant(d.at));
    cell(row, d.by);
    cell(row, d.message);
    cell(row, live.length > 1 && d === live[0] ? "until nothing needs it" : "in force");
    body.append(row);
  }
}

function showRow(r) {
  const body = byId("rows");
  body.querySelector(".none")?.remove();
  const row = document.createElement("tr");
  row.className = "fresh";
  cell(row, r.pipeline);
  cell(row, r.key);
  cell(row, fromMs(r.start_ms));
  cell(row, fromMs(r.end_ms));
  cell(row, number(r.events), "n");
  cell(row, r.stage);
  cell(row, r.reason ?? "");
  cell(row, r.plugin);
  cell(row, r.fields);
  body.prepend(row);
  while (body.rows.length > ROWS_SHOWN) body.lastElementChild.remove();
}

function link(text, mood) {
  byId("link").textContent = text;
  byId("link").className = "badge " + mood;
}

const source = new EventSource("/api/v1/live");
source.addEventListener("open", () => link("live", "good"));
source.addEventListener("error", () => link("no connection, trying again", "bad"));
source.addEventListener("status", (e) => {
  const status = JSON.parse(e.data);
  byId("version").textContent = status.version;
  status.pipelines.forEach((p) => show(p, status.now_ms));
  document.body.dataset.told = Number(document.body.dataset.told || 0) + 1;
});
source.addEventListener("row", (e) => showRow(JSON.parse(e.data)));
