"use strict";
// The explorer's page. Everything that a run says becomes text nodes and attributes by `h`, never markup.

const PAGE = 50, BINS = 24, MOST_VALUES = 30;
const HINTS = { surprise: "−log of the reference's probability", confidence: "probability of the decision", seconds: "duration" };
const blocks = [...document.querySelectorAll("script.evaluation")];
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const $ = id => document.getElementById(id);
const numeric = new Intl.Collator(undefined, { numeric: true });
const sound = new Audio();

let e; // the evaluation, as in the page, with `rows`
let F; // filters
let view = { sort: "", up: false, page: 0 };
let shown = [], current = null, parts = [], frame = 0;

function h(tag, attributes = {}, ...children) {
  const inSvg = tag === "svg" || tag === "path";
  const made = inSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (name === "style") for (const [key, v] of Object.entries(value)) made.style.setProperty(key, v);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return made;
}

const fixed = (value, digits = 2) => value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits);
const percent = (part, of) => of ? `${Math.round(100 * part / of)} %` : "–";

// --- an evaluation ---------------------------------------------------------------------------------------------------

function load(index) {
  e = JSON.parse(blocks[index].textContent);
  e.dim = 0;
  e.rows = e.ids.map((id, i) => {
    const row = { i, id, speaker: e.speakers[i], seconds: e.seconds[i], clip: e.clips[i], attention: e.attention[i], meta: {} };
    for (const name in e.meta) row.meta[name] = e.meta[name][i] || "–";
    if (e.classes) {
      const [r, p] = [e.reference[i], e.predicted[i]];
      Object.assign(row, { reference: r, predicted: p, cell: `${r},${p}`, confidence: e.p[i][p], scored: r >= 0, right: r === p });
      row.surprise = r < 0 ? null : -Math.log(Math.max(e.p[i][r], 1e-12));
    }
    return row;
  });
  if (e.dims) choose(0);
  clearFilters();
  view = { sort: e.classes ? "surprise" : "error", up: false, page: 0 };
  current = null;
}

function choose(dim) { // which dimension of a regression
  e.dim = dim;
  for (const row of e.rows) {
    row.reference = e.reference[row.i][dim];
    row.predicted = e.predicted[row.i][dim];
    row.scored = row.reference !== null;
    row.error = row.scored ? Math.abs(row.predicted - row.reference) : null;
  }
  const values = e.rows.flatMap(row => [row.reference, row.predicted]).filter(v => v !== null);
  const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const margin = 0.04 * (high - low) || 0.5;
  e.limits = [low - margin, high + margin];
}

const nameOf = index => index < 0 ? "–" : e.classes[index];

// --- the list --------------------------------------------------------------------------------------------------------

function sortBy(key) {
  view.up = view.sort === key ? !view.up : key === "id" || (key === "reference" && Boolean(e.classes));
  Object.assign(view, { sort: key, page: 0 });
  update();
}

function compare(a, b) {
  const [x, y] = [a[view.sort], b[view.sort]], sign = view.up ? 1 : -1;
  if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last
  if (view.sort === "id") return sign * numeric.compare(x, y);
  if (e.classes && view.sort === "reference") return sign * (x - y) || sign * (a.predicted - b.predicted) || b.surprise - a.surprise;
  return sign * (x - y) || a.i - b.i;
}

function update() {
  shown = e.rows.filter(row => passes(row)).sort(compare);
  if (current && !shown.includes(current)) current = null;
  for (const part of parts) part();
  for (const th of $("head").children) {
    const key = th.dataset.key, sorted = key && key === view.sort;
    sorted ? th.setAttribute("aria-sort", view.up ? "ascending" : "descending") : th.removeAttribute("aria-sort");
    if (key) th.querySelector("span").textContent = sorted ? (view.up ? " ▲" : " ▼") : "";
  }
  const scored = shown.filter(row => row.scored), sum = key => scored.reduce((total, row) => total + Number(row[key]), 0);
  const of = shown.length === e.rows.length ? `${e.rows.length}` : `${shown.length} of ${e.rows.length}`;
  const quality = e.classes
    ? `${percent(sum("right"), scored.length)} right`
    : `mean |error| ${fixed(scored.length ? sum("error") / scored.length : null, 3)}`;
  $("count").textContent = `${of} utterances, ${quality}`;
  $("clear").hidden = !isFiltered();
  list();
}

function list() {
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  view.page = Math.min(view.page, pages - 1);
  const inside = $("rows").contains(document.activeElement);
  const page = shown.slice(view.page * PAGE, (view.page + 1) * PAGE);
  $("rows").replaceChildren(...page.flatMap(row => row === current ? [line(row), detail(row)] : [line(row)]));
  if (!shown.length) $("rows").append(h("tr", {}, h("td", { colspan: 8 }, "No utterance passes these filters.")));
  $("pages").hidden = pages < 2;
  $("page").textContent = `page ${view.page + 1} of ${pages}`;
  $("back").disabled = view.page === 0;
  $("on").disabled = view.page === pages - 1;
  if (inside && current) $("rows").querySelector("[aria-selected=true]")?.focus({ preventScroll: true });
  tick();
  const state = { e: $("evaluation").selectedIndex, cells: [...F.cells].join(" "), sort: view.sort, up: +view.up };
  const link = "#" + new URLSearchParams(state);
  if (link !== location.hash) history.replaceState(null, "", link);
}

function picture(row, attention = "") {
  if (!row.clip) return h("span", { class: "small" }, "no clip");
  const levels = [...pictures[row.clip]].map(c => parseInt(c, 36) / 35), n = levels.length;
  const attended = [...attention].map((c, i, all) => `${i ? "L" : "M"}${(i + .5) * n / all.length} ${31 - 30 * parseInt(c, 36) / 35}`);
  const path = levels.map((v, i) => `M${i + .15} ${16 - 15.5 * Math.max(v, .03)}h.7V${16 + 15.5 * Math.max(v, .03)}h-.7z`).join("");
  const from = event => {
    event.stopPropagation();
    const box = event.currentTarget.getBoundingClientRect();
    play(row, (event.clientX - box.left) / box.width);
  };
  return h("div", { class: "wave", "data-clip": row.clip, title: "play from here", click: from },
    h("svg", { viewBox: `0 0 ${n} 32`, preserveAspectRatio: "none", "aria-hidden": "true" }, h("path", { d: path }),
      attention && h("path", { class: "attention", "vector-effect": "non-scaling-stroke", d: attended.join("") })),
    h("div", { class: "at" }));
}

function decided(row) {
  const [reference, predicted] = [nameOf(row.reference), nameOf(row.predicted)];
  if (!row.scored || row.right) return row.scored ? `${reference} ✓` : predicted;
  return [`${reference} → `, h("span", { class: "wrong" }, predicted)];
}

const kind = (row, i) => `${i === row.reference ? "reference " : ""}${i === row.predicted ? "predicted" : ""}`;

function minis(row) {
  if (e.classes) {
    const text = e.p[row.i].map((p, i) => `${nameOf(i)} ${fixed(p)}`).join(", ");
    return h("div", { class: "mini", role: "img", title: text, "aria-label": text },
      e.p[row.i].map((p, i) => h("i", { class: kind(row, i), style: { height: `${Math.max(1, 29 * p)}px` } })));
  }
  const dot = value => h("i", { hidden: value === null, style: { left: `${100 * (value - e.limits[0]) / (e.limits[1] - e.limits[0])}%` } });
  return h("div", { class: "track", "aria-hidden": "true" }, dot(row.reference), dot(row.predicted));
}

function line(row) {
  const known = Object.values(row.meta).filter(value => value !== "–" && value.length < 16).slice(0, 3);
  const numbers = e.classes ? [row.confidence, row.surprise] : [row.reference, row.predicted, row.error];
  const first = row === (current || shown[view.page * PAGE]);
  const sounding = event => {
    event.stopPropagation();
    play(row);
  };
  return h("tr", { class: "row", tabindex: first ? 0 : -1, "aria-selected": String(row === current), "data-i": row.i,
    click: () => go(shown.indexOf(row)) },
    h("td", {}, row.clip && h("button", { class: "play", "data-clip": row.clip, "aria-label": `play ${row.id}`, click: sounding }, "▶")),
    h("td", {}, picture(row)),
    h("td", { class: "who" }, h("b", {}, row.id), h("span", { class: "small" }, [`speaker ${row.speaker}`, ...known].join(" · "))),
    e.classes && h("td", { class: "decided" }, decided(row)),
    h("td", {}, minis(row)),
    numbers.map(value => h("td", { class: "n" }, fixed(value))),
    h("td", { class: "n seconds" }, fixed(row.seconds, 1)));
}

function detail(row) {
  const bar = (p, i) => [
    h("span", { class: i === row.predicted && !row.right ? "wrong" : null }, nameOf(i) + (i === row.reference ? " (reference)" : "")),
    h("span", { class: `full ${kind(row, i)}`, style: { width: `${100 * p}%` } }),
    h("output", {}, fixed(p, 3)),
  ];
  const pair = (name, i) => [
    h("span", {}, name),
    h("span", {}, `reference ${fixed(e.reference[row.i][i], 3)}`),
    h("output", {}, `predicted ${fixed(e.predicted[row.i][i], 3)}`),
  ];
  const facts = [["id", row.id], ["speaker", row.speaker], ["duration", `${fixed(row.seconds)} s`], ...Object.entries(row.meta)];
  if (e.classes) facts.push(["surprise", `${fixed(row.surprise, 3)} = −log p(reference)`]);
  return h("tr", { class: "detail" }, h("td", { colspan: 8 }, h("div", {},
    row.clip && picture(row, row.attention || ""),
    row.clip && row.attention && h("span", { class: "legend" }, "line: attention over time"),
    h("div", { class: "named" }, e.classes ? e.p[row.i].map(bar) : e.dims.map(pair)),
    h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])))));
}

function go(index) { // to an utterance of the list
  if (index < 0 || index >= shown.length) return;
  current = shown[index];
  view.page = Math.floor(index / PAGE);
  for (const part of parts.slice(0, e.dims ? 1 : 0)) part();
  list();
  const row = $("rows").querySelector("[aria-selected=true]");
  row.focus({ preventScroll: true });
  row.nextSibling.scrollIntoView({ block: "nearest" });
  row.scrollIntoView({ block: "nearest" });
  if ($("moving").checked) play(current, 0);
}

// --- sound -----------------------------------------------------------------------------------------------------------

function play(row, share = null) {
  if (!row.clip) return;
  const isNew = sound.dataset.clip !== row.clip;
  if (!isNew && share === null && !sound.paused) return sound.pause();
  if (isNew) {
    sound.src = `audio/${row.clip}`;
    sound.dataset.clip = row.clip;
  }
  const start = () => { if (share !== null || sound.ended) sound.currentTime = (share || 0) * sound.duration; };
  isNew && share ? sound.addEventListener("loadedmetadata", start, { once: true }) : !isNew && start();
  $("failed").textContent = "";
  sound.play().catch(error => {
    if (error.name !== "AbortError") $("failed").textContent = `This clip cannot be played (${error.message}); is audio/ beside this page?`;
  });
}

function tick() {
  const share = sound.duration ? sound.currentTime / sound.duration : 0;
  for (const element of document.querySelectorAll("[data-clip]")) {
    const own = element.dataset.clip === sound.dataset.clip, playing = own && !sound.paused && !sound.ended;
    if (element.className === "play") element.textContent = playing ? "❚❚" : "▶";
    else element.lastChild.style.width = own && (playing || sound.currentTime) && !sound.ended ? `${100 * share}%` : "0";
    if (element.className === "wave") element.lastChild.hidden = !own || sound.ended;
  }
  cancelAnimationFrame(frame);
  frame = sound.paused ? 0 : requestAnimationFrame(tick);
}
for (const name of ["play", "pause", "ended", "seeked"]) sound.addEventListener(name, tick);

// --- keys and start --------------------------------------------------------------------------------------------------

function clearAll() {
  clearFilters();
  refilter();
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = document.activeElement, typing = at.matches("input[type=search], select");
  if (event.key === "Escape") return clearAll(), at.blur();
  if (typing || (event.key === " " && at.matches("button, input, summary"))) return;
  const place = current ? shown.indexOf(current) : -1;
  const actions = {
    j: () => go(place + 1), k: () => go(place - 1), "/": () => $("find").focus(),
    " ": () => current ? play(current) : (go(0), current && sound.paused && play(current)),
    Enter: () => at.matches(".row") && go(shown.indexOf(e.rows[at.dataset.i])),
  };
  if (!actions[event.key]) return;
  if (event.key !== "Enter") event.preventDefault();
  actions[event.key]();
});
$("clear").addEventListener("click", clearAll);
$("back").addEventListener("click", () => { view.page--; list(); $("list").scrollIntoView(); });
$("on").addEventListener("click", () => { view.page++; list(); $("list").scrollIntoView(); });
$("evaluation").append(...blocks.map(block => h("option", {}, block.dataset.label)));
$("evaluation").addEventListener("change", () => { load($("evaluation").selectedIndex); build(); update(); });
$("folded").open = matchMedia("(min-width: 1201px)").matches;
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => update());

const asked = new URLSearchParams(location.hash.slice(1)); // a link to a view
const largest = blocks.reduce((best, block, i) => +block.dataset.n > +blocks[best].dataset.n ? i : best, 0);
$("evaluation").selectedIndex = blocks[asked.get("e")] ? Number(asked.get("e")) : largest;
load($("evaluation").selectedIndex);
for (const cell of (asked.get("cells") || "").split(" ")) if (/^\d+,\d+$/.test(cell) && e.classes) F.cells.add(cell);
build();
if ([...$("head").children].some(th => th.dataset.key && th.dataset.key === asked.get("sort")))
  Object.assign(view, { sort: asked.get("sort"), up: asked.get("up") === "1" });
update();
