"use strict";
// The filters of the explorer's page, and the panels that set them; see explorer.js.

function clearFilters() {
  F = { cells: new Set(), speakers: new Set(), meta: Object.create(null), find: "", ranges: {}, box: null };
}

const isFiltered = () => F.cells.size || F.speakers.size || F.find || F.box || Object.keys(F.ranges).length || Object.keys(F.meta).length;

function passes(row, except) { // all filters but one, so that its own choices show what they would add
  if (except !== "cells" && F.cells.size && !F.cells.has(row.cell)) return false;
  if (except !== "speakers" && F.speakers.size && !F.speakers.has(row.speaker)) return false;
  if (F.find && !row.id.toLowerCase().includes(F.find) && !row.speaker.toLowerCase().includes(F.find)) return false;
  for (const [key, [low, high]] of Object.entries(F.ranges))
    if (except !== key && (row[key] === null || row[key] < low || row[key] > high)) return false;
  for (const [name, value] of Object.entries(F.meta)) if (row.meta[name] !== value) return false;
  if (F.box && except !== "box") {
    const [x0, x1, y0, y1] = F.box;
    if (!row.scored || row.reference < x0 || row.reference > x1 || row.predicted < y0 || row.predicted > y1) return false;
  }
  return true;
}

function refilter() {
  view.page = 0;
  update();
}

function toggle(set, values) {
  const all = values.every(value => set.has(value));
  for (const value of values) all ? set.delete(value) : set.add(value);
  refilter();
}

// Each panel is built once for an evaluation, and has a function in `parts` that brings its numbers up to date: focus stays where it is.

function panel(title, ...children) {
  $("filters").append(h("section", { "aria-label": title }, children));
}

function matrix() {
  const k = e.classes.length, cells = [], lines = [...Array(k).keys()];
  const button = (text, label, click) => h("button", { title: label, "aria-label": label, click }, text);
  const whole = (i, row) => lines.map(j => row ? `${i},${j}` : `${j},${i}`);
  const head = h("tr", {}, h("td"), lines.map(i => h("th", { scope: "col" },
    button(nameOf(i), `all predicted as ${nameOf(i)}`, () => toggle(F.cells, whole(i, false))))));
  const cell = (i, j) => {
    const key = `${i},${j}`, made = button("", "", () => toggle(F.cells, [key]));
    made.dataset.cell = key;
    cells.push([key, i, j, made]);
    return h("td", {}, made);
  };
  const body = lines.map(i => h("tr", {},
    h("th", { scope: "row" }, button(nameOf(i), `all ${nameOf(i)}`, () => toggle(F.cells, whole(i, true)))), lines.map(j => cell(i, j))));
  const wrong = cells.filter(([, i, j]) => i !== j).map(([key]) => key);
  panel("Confusion matrix", h("h2", {}, "reference ↓ predicted →", h("output", {},
    h("button", { id: "errors", click: () => { F.cells.clear(); toggle(F.cells, wrong); } }, "errors"))),
    h("table", { class: "matrix" }, h("thead", {}, head), h("tbody", {}, body)));
  parts.push(() => {
    const counts = {}, sums = Array(k).fill(0);
    for (const row of e.rows) if (row.scored && passes(row, "cells")) {
      counts[row.cell] = (counts[row.cell] || 0) + 1;
      sums[row.reference]++;
    }
    for (const [key, i, j, made] of cells) {
      const n = counts[key] || 0, label = `${n} ${nameOf(i)} predicted as ${nameOf(j)} (${percent(n, sums[i])})`;
      made.textContent = n || "·";
      made.title = label;
      made.setAttribute("aria-label", label);
      made.setAttribute("aria-pressed", F.cells.has(key));
      made.style.setProperty("--share", sums[i] ? Math.sqrt(n / sums[i]) : 0);
      made.style.setProperty("--tint", i === j ? "var(--right)" : "var(--wrong)");
    }
  });
}

function scatter() {
  const canvas = h("canvas", { width: 640, height: 640, role: "img", "aria-label": "predicted against reference; drag to choose a part" });
  const another = () => {
    choose(+dims.value);
    clearFilters();
    build();
    refilter();
  };
  const dims = h("select", { "aria-label": "dimension", change: another },
    e.dims.map((name, i) => h("option", { value: i, selected: i === e.dim }, name)));
  const edge = 40, span = 640 - 2 * edge, width = e.limits[1] - e.limits[0];
  const x = v => edge + span * (v - e.limits[0]) / width, y = v => 640 - x(v);
  const value = event => {
    const box = canvas.getBoundingClientRect(), at = p => e.limits[0] + width * (640 * p - edge) / span;
    return [at((event.clientX - box.left) / box.width), at(1 - (event.clientY - box.top) / box.height)];
  };
  let from = null;
  const drag = event => {
    if (!from) return;
    const to = value(event);
    F.box = [Math.min(from[0], to[0]), Math.max(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[1], to[1])];
    draw();
  };
  canvas.addEventListener("pointerdown", event => { from = value(event); canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", drag);
  canvas.addEventListener("pointerup", event => {
    if (!from) return;
    const to = value(event), moved = Math.hypot(to[0] - from[0], to[1] - from[1]) / width;
    if (moved < 0.01) { // a click: the nearest utterance
      F.box = null;
      const distance = row => Math.hypot(row.reference - to[0], row.predicted - to[1]);
      current = e.rows.filter(row => row.scored && passes(row)).reduce((a, b) => a && distance(a) <= distance(b) ? a : b, null);
    }
    from = null;
    refilter();
    if (moved < 0.01 && current) go(shown.indexOf(current));
  });
  const draw = () => {
    const c = canvas.getContext("2d"), colour = name => getComputedStyle(document.body).getPropertyValue(name).trim();
    c.clearRect(0, 0, 640, 640);
    c.strokeStyle = colour("--soft");
    c.setLineDash([6, 6]);
    c.beginPath(); c.moveTo(x(e.limits[0]), y(e.limits[0])); c.lineTo(x(e.limits[1]), y(e.limits[1])); c.stroke();
    c.setLineDash([]);
    c.fillStyle = colour("--soft");
    c.font = "20px system-ui, sans-serif";
    c.fillText(`reference ${fixed(e.limits[0])} … ${fixed(e.limits[1])} →`, edge, 634);
    c.save(); c.translate(20, 640 - edge); c.rotate(-Math.PI / 2); c.fillText("predicted →", 0, 0); c.restore();
    const size = e.rows.length > 2000 ? 4 : 8;
    for (const inside of [false, true]) {
      c.fillStyle = colour(inside ? "--right" : "--line");
      c.globalAlpha = inside ? Math.max(0.25, Math.min(0.8, 800 / e.rows.length)) : 1;
      for (const row of e.rows) if (row.scored && passes(row) === inside) {
        c.fillRect(x(row.reference) - size / 2, y(row.predicted) - size / 2, size, size);
      }
    }
    c.globalAlpha = 1;
    c.lineWidth = 3;
    c.strokeStyle = colour("--wrong");
    if (current && current.scored) { c.beginPath(); c.arc(x(current.reference), y(current.predicted), 9, 0, 7); c.stroke(); }
    if (F.box) c.strokeRect(x(F.box[0]), y(F.box[3]), x(F.box[1]) - x(F.box[0]), y(F.box[2]) - y(F.box[3]));
    c.lineWidth = 1;
  };
  panel("Scatter", h("h2", {}, dims, h("output", {}, "drag to choose")), canvas);
  parts.push(draw);
}

function histogram(key, title, digits) {
  const values = e.rows.map(row => row[key]).filter(v => v !== null);
  if (!values.length) return;
  const low = key === "confidence" ? 0 : Math.min(0, values.reduce((a, b) => Math.min(a, b)));
  const high = key === "confidence" ? 1 : values.reduce((a, b) => Math.max(a, b)) || 1, step = 10 ** -digits;
  const top = Math.ceil(high / step) * step, bars = h("div", { class: "histogram", "aria-hidden": "true" }), output = h("output");
  const moved = () => {
    const [a, b] = [+from.value, +to.value].sort((p, q) => p - q);
    if (a <= low && b >= top - step / 2) delete F.ranges[key]; else F.ranges[key] = [a, b];
    refilter();
  };
  const slider = (name, value) =>
    h("input", { type: "range", min: low, max: top, step, value, "aria-label": `${title}, ${name}`, input: moved });
  const from = slider("at least", low), to = slider("at most", top);
  panel(title, h("h2", {}, title, output), bars, h("div", { class: "range" }, from, to));
  parts.push(() => {
    const range = F.ranges[key] || [low, top], bins = Array.from({ length: BINS }, () => [0, 0]);
    for (const row of e.rows) if (row[key] !== null && passes(row, key))
      bins[Math.min(BINS - 1, Math.floor(BINS * (row[key] - low) / (top - low)))][e.classes && row.scored && !row.right ? 1 : 0]++;
    const most = Math.max(1, ...bins.map(([a, b]) => a + b));
    bars.replaceChildren(...bins.map(pair => h("span", {}, pair.map(n => h("i", { style: { height: `${42 * n / most}px` } })))));
    [from.value, to.value] = range;
    output.textContent = `${fixed(range[0], digits)} – ${fixed(range[1], digits)}`;
  });
}

function speakers() {
  const groups = new Map();
  for (const row of e.rows) groups.set(row.speaker, (groups.get(row.speaker) || 0) + 1);
  if (groups.size < 2) return;
  const chips = [...groups.keys()].sort(numeric.compare).map(name => {
    const score = h("small");
    return [name, score, h("button", { click: () => toggle(F.speakers, [name]) }, name, score)];
  });
  const output = h("output");
  panel("Speakers", h("h2", {}, "speakers", output), h("div", { class: "chips" }, chips.map(c => c[2])));
  parts.push(() => {
    output.textContent = F.cells.size ? "utterances" : e.classes ? "right" : "mean |error|";
    const sums = new Map(chips.map(([name]) => [name, [0, 0]]));
    for (const row of e.rows) if (row.scored && passes(row, "speakers")) {
      const sum = sums.get(row.speaker);
      sum[0] += e.classes ? row.right : row.error;
      sum[1]++;
    }
    for (const [name, score, button] of chips) {
      const [sum, n] = sums.get(name);
      score.textContent = F.cells.size ? n : e.classes ? percent(sum, n) : fixed(n ? sum / n : null);
      button.title = `${n} utterances`;
      button.setAttribute("aria-pressed", F.speakers.has(name));
    }
  });
}

function finder() {
  const typed = () => {
    F.find = find.value.trim().toLowerCase();
    refilter();
  };
  const find = h("input", { type: "search", id: "find", placeholder: "id or speaker", "aria-label": "find", input: typed });
  const selects = Object.keys(e.meta).flatMap(name => {
    const values = [...new Set(e.rows.map(row => row.meta[name]))].sort(numeric.compare);
    if (values.length < 2 || values.length > MOST_VALUES) return [];
    const select = h("select", { "aria-label": name, change: () => {
      if (select.selectedIndex) F.meta[name] = values[select.selectedIndex - 1]; else delete F.meta[name];
      refilter();
    } }, h("option", {}, "all"), values.map(value => h("option", {}, value)));
    parts.push(() => { select.selectedIndex = name in F.meta ? values.indexOf(F.meta[name]) + 1 : 0; });
    return [h("span", {}, name), select];
  });
  panel("Find", h("div", { class: "choices" }, h("span", {}, "find"), find, selects));
  parts.push(() => { if (find.value.trim().toLowerCase() !== F.find) find.value = F.find; });
}

function build() {
  parts = [];
  $("filters").replaceChildren();
  $("setting").textContent = e.setting;
  if (e.classes) matrix(); else scatter();
  speakers();
  if (e.classes) histogram("confidence", "confidence", 2); else histogram("error", "absolute error", 2);
  histogram("seconds", "duration, s", 1);
  finder();
  const numbers = ["confidence", "surprise", "predicted", "error", "seconds", ...(e.dims ? ["reference"] : [])];
  const columns = e.classes
    ? [["reference", "reference → predicted"], ["", "probabilities"], ["confidence", "confidence"], ["surprise", "surprise"]]
    : [["", "● reference ○ predicted"], ["reference", "reference"], ["predicted", "predicted"], ["error", "|error|"]];
  const header = ([key, title]) => h("th", { scope: "col", class: numbers.includes(key) ? `n ${key}` : null, "data-key": key },
    key ? h("button", { title: HINTS[key], click: () => sortBy(key) }, title, h("span")) : title);
  $("head").replaceChildren(...[["", ""], ["", "audio"], ["id", "id, speaker"], ...columns, ["seconds", "s"]].map(header));
}
