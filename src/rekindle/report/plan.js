// The decision of `rekindle plan`, recomputed in the browser: the same law, the same draws, the same rules.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const FACTORS = { "0": () => 0, "1": () => 1, "r": (r) => r, "1/r": (r) => 1 / r };

// --- the law ---------------------------------------------------------------------------------------------------

function saturated(experts, start, most) {
  return 1 / (1 / (experts - 1 + 1 / (1 / start - 1 / most)) + 1 / most);
}

function loss(row, values, points) {
  const log = (v) => Math.log(v === "experts" ? saturated(points[v], values.E_start, values.E_max) : points[v]);
  let sum = 0;
  for (const term of row.terms) {
    let power = 0;
    for (const e of term.exponents) power += values[e.name] * e.variables.reduce((p, v) => p * log(v), e.factor);
    sum += (term.amplitude ? values[term.amplitude] : 1) * Math.exp(power);
  }
  return Number.isNaN(sum) ? Infinity : sum;
}

function drawn(row) {
  return Array.from({ length: data.draws }, (_, i) =>
    Object.fromEntries(Object.entries(row.draws).map(([name, values]) => [name, values[i]])));
}
const rows = data.law.rows;
for (const row of Object.values(rows)) row.sample = drawn(row);

function question(params, sunk, tokens, experts) {
  const { top_k, feed_forward } = data.question;
  const k = Math.min(top_k, experts);
  const active = params * (1 + (k - 1) * feed_forward), total = params * (1 + (experts - 1) * feed_forward);
  return { params, sunk, tokens, experts, top_k: k, active, total, ratio: active / params };
}

function points(row, way, q, d2) {
  const counted = { dense: q.params, active: q.active, total: q.total }[row.params];
  const trained = way.sunk === null ? d2 : FACTORS[way.sunk](q.ratio) * q.sunk + FACTORS[way.tokens](q.ratio) * d2;
  return {
    params: way.dense ? q.params : counted, sunk: q.sunk, tokens: trained, experts: way.dense ? 1 : q.experts,
    active_share: way.dense ? 1 : q.top_k / q.experts, granularity: 1,
  };
}

const mid = (way, q, d2) => loss(rows[way.row], rows[way.row].values, points(rows[way.row], way, q, d2));
const draw = (way, q, d2, i) => loss(rows[way.row], rows[way.row].sample[i], points(rows[way.row], way, q, d2));
const draws = (way, q, d2) => rows[way.row].sample.map((_, i) => draw(way, q, d2, i));

// --- the decision ----------------------------------------------------------------------------------------------

function ends(values) {
  const sorted = Float64Array.from(values).sort();
  return data.percentiles.map((p) => sorted[Math.round((p / 100) * (sorted.length - 1))]);
}

const { most, grid } = data.crossing;
function tokensFor(q) {
  const least = Math.min(data.crossing.least, q.tokens / 1000);
  return Array.from({ length: grid }, (_, i) => least * (most / least) ** (i / (grid - 1)));
}

// The lowest tokens from which the difference is positive: bisection between two points of the grid.
function lowest(difference, tokens) {
  const first = tokens.findIndex((d2) => difference(d2) > 0);
  if (first < 0) return Infinity;
  let lo = Math.log(tokens[Math.max(first - 1, 0)]), hi = Math.log(tokens[first]);
  for (let i = 0; i < 60; i++) {
    const middle = (lo + hi) / 2;
    if (difference(Math.exp(middle)) > 0) hi = middle; else lo = middle;
  }
  return Math.exp(hi);
}

function range(q, middle, each) {
  const tokens = tokensFor(q);
  const [low, high] = ends(Array.from({ length: data.draws }, (_, i) => lowest((d2) => each(d2, i), tokens)));
  return { low, mid: lowest(middle, tokens), high };
}

function decide(q) {
  const { ways } = data, options = {};
  for (const [name, way] of Object.entries(ways)) {
    const [low, high] = ends(draws(way, q, q.tokens));
    const tokens = points(rows[way.row], way, q, q.tokens).tokens;
    const flops = data.flopsPerParameter * (way.dense ? q.params * FACTORS[way.tokens](q.ratio) * q.tokens : q.active * tokens);
    options[name] = { title: way.title, colour: way.colour, loss: mid(way, q, q.tokens), low, high, flops };
  }
  const found = { options, source: null, difference: null, crossing: null, regain: null };
  if (ways.dense) found.source = mid(data.source, q, 1);
  const rivals = data.rivals.filter((name) => ways[name]);
  if (ways.upcycled && rivals.length) found.difference = difference(q, options, rivals);
  if (ways.upcycled && ways.scratch) {
    found.crossing = range(q, (d2) => mid(ways.upcycled, q, d2) - mid(ways.scratch, q, d2),
      (d2, i) => draw(ways.upcycled, q, d2, i) - draw(ways.scratch, q, d2, i));
  }
  if (ways.upcycled && ways.dense) {
    const sources = draws(data.source, q, 1);
    found.regain = range(q, (d2) => found.source - mid(ways.upcycled, q, d2),
      (d2, i) => sources[i] - draw(ways.upcycled, q, d2, i));
  }
  const back = found.crossing && found.crossing.mid < q.tokens && options.upcycled.loss < options.scratch.loss;
  const lost = data.unknown && outside(q).length ? data.unknown : q.tokens > most || back ? data.beyond : null;
  return Object.assign(found, lost ? { verdict: "undecided", reason: lost } : verdict(found));
}

function difference(q, options, rivals) {
  const best = rivals.reduce((a, b) => (options[b].loss < options[a].loss ? b : a));
  const up = draws(data.ways.upcycled, q, q.tokens), others = rivals.map((name) => draws(data.ways[name], q, q.tokens));
  const apart = up.map((value, i) => value - Math.min(...others.map((o) => o[i])));
  const low = ends(apart.map((x) => (Number.isNaN(x) ? -Infinity : x)))[0];
  const high = ends(apart.map((x) => (Number.isNaN(x) ? Infinity : x)))[1];
  return { rival: best, mid: options.upcycled.loss - options[best].loss, low, high };
}

function verdict({ options, source, difference: d }) {
  if (data.denseAlone) {
    const then = options.dense.loss, gap = (options.dense_scratch.loss - then).toFixed(3);
    return { verdict: "undecided", reason: `The law “${data.law.name}” knows dense models alone: it puts this one at ` +
      `${source.toFixed(3)} now and at ${then.toFixed(3)} then, ${gap} nats below one from scratch on as many tokens; ` +
      "of upcycling it says nothing." };
  }
  if (!d) return { verdict: "undecided", reason: `The law ${data.law.name} has no row for upcycled models and a rival.` };
  const up = options.upcycled.loss, signed = (x) => (x < 0 ? "" : "+") + x.toFixed(3);
  if (source !== null && up >= source) {
    return { verdict: "undecided", reason: `The law puts the upcycled model at ${up.toFixed(3)}, above its source's ` +
      `${source.toFixed(3)}, where upcycling starts: so few tokens are out of its reach.` };
  }
  const apart = `${Math.abs(d.mid).toFixed(3)} nats ${d.mid < 0 ? "below" : "above"} “${options[d.rival].title}”`;
  if (!Number.isFinite(d.low) || !Number.isFinite(d.high)) {
    return { verdict: "undecided", reason: `Upcycled ends ${apart}, but the interval of the difference is unbounded: fit more runs.` };
  }
  const interval = `(${signed(d.low)} to ${signed(d.high)})`;
  if (d.low <= 0 && d.high >= 0) {
    return { verdict: "undecided", reason: `Upcycled ends ${apart}, and the interval of the difference holds 0 ${interval}.` };
  }
  if (!data.law.fitErrorKnown && Math.abs(d.mid) < data.unknownFit) {
    return { verdict: "undecided", reason: `Upcycled ends ${apart} ${interval}: less than ${data.unknownFit} nats, ` +
      "and the fit's error is unknown." };
  }
  return { verdict: d.mid < 0 ? "worth it" : "not worth it",
    reason: `Upcycled ends ${apart}, the best that the same FLOPs buy otherwise ${interval}.` };
}

function outside(q) {
  const said = new Set();
  for (const way of Object.values(data.ways)) {
    const row = rows[way.row], asked = { ...points(row, way, q, q.tokens), top_k: q.top_k };
    const known = new Set(row.terms.flatMap((term) => term.exponents.flatMap((e) => e.variables)));
    if (!way.dense) known.add("experts").add("top_k");
    for (const [name, [low, high]] of Object.entries(row.domain)) {
      if (known.has(name) && (asked[name] < low * (1 - 1e-9) || asked[name] > high * (1 + 1e-9))) {
        said.add(`${name} ${count(asked[name])} (fitted on ${low === high ? count(low) : `${count(low)} to ${count(high)}`})`);
      }
    }
  }
  return [...said];
}

// --- the page --------------------------------------------------------------------------------------------------

function count(n) {
  if (!Number.isFinite(n)) return "never";
  for (const [unit, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (n >= unit * 0.9995) return `${+(n / unit).toPrecision(3)}${letter}`;
  }
  return `${+n.toPrecision(3)}`;
}
const bytes = (n) => `${count(n).replace("k", " k").replace("M", " M").replace("B", " G").replace("T", " T")}B`;
const text = (tag, content, attributes = {}) => {
  const element = document.createElement(tag);
  element.textContent = content;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

function showOptions(found, q) {
  const { peak, mfu, price } = data.machines;
  const sorted = Object.values(found.options).sort((a, b) => a.loss - b.loss);
  const lines = sorted.map((option) => {
    const row = document.createElement("tr"), head = text("th", "", { scope: "row" }), hours = option.flops / (peak * mfu * 3600);
    head.append(text("span", "", { class: "dot", style: `background: var(--${option.colour})` }), option.title);
    row.append(head, text("td", option.loss.toFixed(4), { "data-label": "Loss, nats per token" }),
      text("td", `${option.low.toFixed(3)} to ${option.high.toFixed(3)}`, { "data-label": "90 %" }),
      text("td", option.flops.toExponential(2), { "data-label": "FLOPs still to be spent" }),
      text("td", hours < 100 ? hours.toFixed(1) : Math.round(hours).toLocaleString("en"), { "data-label": "GPU-hours" }),
      ...(price === null ? [] : [text("td", Math.round(hours * price).toLocaleString("en"), { "data-label": "Cost" })]));
    return row;
  });
  $("options").replaceChildren(...lines);
  $("key").replaceChildren(...sorted.map((option) => {  // in the order of the table
    const item = text("li", "", { style: `color: var(--${option.colour})` });
    item.append(text("span", ""), option.title);
    return item;
  }));
}

function showFacts(found, q) {
  const facts = [], spread = (r) => `${count(r.mid)} tokens (${count(r.low)} to ${count(r.high)})`;
  if (found.source !== null) facts.push(["Source, by the law", `${found.source.toFixed(4)} nats per token`]);
  if (found.crossing) facts.push(["Overtaken, D*", `${spread(found.crossing)}: from there a mixture from scratch is lower`]);
  if (found.regain) facts.push(["Regained", `${spread(found.regain)}: from there the law puts it below its source`]);
  const shape = q.params === data.question.params;
  const kv = shape ? data.serving.kvBytes : 4 * 128 * (q.params / (12 * 128 ** 2)) ** (2 / 3);
  const cache = `KV cache ${bytes(kv)} a token${shape && !data.serving.kvEstimated ? "" : " (typical for its size)"}`;
  facts.push(["Serving, dense", `${count(q.params)} parameters, ${bytes(2 * q.params)} in bf16, ${cache}`]);
  if (!data.denseAlone) facts.push(["Serving, mixture", `${count(q.active)} active of ${count(q.total)}, ${bytes(2 * q.total)} in bf16, ${cache}`]);
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [text("dt", name), text("dd", value)]));
}

const node = (name, attributes, content) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (content !== undefined) element.textContent = content;
  return element;
};

function steps(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= rough);
  return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, i) => (Math.ceil(low / step) + i) * step);
}

function showChart(found, q) {
  const narrow = document.documentElement.clientWidth < 640, width = narrow ? 360 : 1016, height = narrow ? 340 : 430;
  const box = { left: 44, right: width - 14, top: 26, bottom: height - 44 }, around = 30, n = narrow ? 41 : 61;
  const tokens = Array.from({ length: n }, (_, i) => (q.tokens / around) * (around * around) ** (i / (n - 1)));
  const curves = Object.values(data.ways).map((way) => ({ way, mid: tokens.map((d2) => mid(way, q, d2)),
    band: tokens.map((d2) => ends(draws(way, q, d2))) }));
  const all = curves.flatMap((c) => c.band.flat()), room = 0.04 * (Math.max(...all) - Math.min(...all));
  const low = Math.min(...all) - room, high = Math.max(...all) + room, first = Math.log(tokens[0]), last = Math.log(tokens[n - 1]);
  const x = (d2) => box.left + ((Math.log(d2) - first) / (last - first)) * (box.right - box.left);
  const y = (value) => box.bottom - ((value - low) / (high - low)) * (box.bottom - box.top);
  const inside = (d2) => Math.min(Math.max(d2, tokens[0]), tokens[n - 1]);
  const svg = $("chart"), parts = [];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const span = found.crossing;
  if (span && span.low < tokens[n - 1] && span.high > tokens[0]) {
    parts.push(node("rect", { x: x(inside(span.low)), y: box.top, width: x(inside(span.high)) - x(inside(span.low)),
      height: box.bottom - box.top, fill: "var(--grid)", opacity: 0.55 }));
  }
  const ticks = steps(low, high, narrow ? 5 : 7);
  for (const value of ticks) {
    parts.push(node("line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value), stroke: "var(--grid)" }));
    parts.push(node("text", { x: box.left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(ticks[1] - ticks[0] < 0.0999 ? 2 : 1)));
  }
  for (let power = Math.ceil(Math.log10(tokens[0])); power <= Math.log10(tokens[n - 1]); power++) {
    parts.push(node("text", { x: x(10 ** power), y: box.bottom + 18, "text-anchor": "middle" }, count(10 ** power)));
  }
  parts.push(node("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, stroke: "var(--muted)", "stroke-width": 0.8 }));
  const mark = (d2, attributes) => parts.push(node("line", { x1: x(d2), x2: x(d2), y1: box.top, y2: box.bottom, ...attributes }));
  mark(q.tokens, { stroke: "var(--muted)", "stroke-dasharray": "1 3" });
  for (const { way, band } of curves) {
    const edge = (i) => tokens.map((d2, j) => `${x(d2).toFixed(1)},${y(band[j][i]).toFixed(1)}`);
    parts.push(node("polygon", { points: [...edge(0), ...edge(1).reverse()].join(" "), fill: `var(--${way.colour})`, opacity: 0.13 }));
  }
  for (const { way, mid: values } of curves) {
    const reached = way.row === "upcycled" && found.source !== null ? values.findIndex((v) => v < found.source) : 0;
    const at = tokens.map((d2, j) => `${x(d2).toFixed(1)},${y(values[j]).toFixed(1)}`), from = reached < 0 ? n : reached;
    const line = { fill: "none", stroke: `var(--${way.colour})` };
    parts.push(node("polyline", { ...line, points: at.slice(from).join(" "), "stroke-width": 2 }));
    parts.push(node("polyline", { ...line, points: at.slice(0, from).join(" "), "stroke-width": 1.2, "stroke-dasharray": "2 3" }));
  }
  if (span && span.mid > tokens[0] && span.mid < tokens[n - 1]) {
    mark(span.mid, { stroke: "var(--ink)" });
    const right = x(span.mid) > width - 110;
    parts.push(node("text", { x: x(span.mid) + (right ? -6 : 6), y: box.top + 12, "text-anchor": right ? "end" : "start",
      style: "fill: var(--ink)" }, `D* ${count(span.mid)}`));
  }
  parts.push(node("text", { x: 0, y: 12 }, "Loss, nats per token"));
  parts.push(node("text", { x: box.right, y: height - 6, "text-anchor": "end" }, "tokens of the second stage, D2"));
  svg.replaceChildren(...parts);
}

const SLIDERS = { params: [1e7, 1e11], sunk: [1e8, 1e13], tokens: [1e8, 1e13] };
const asked = { ...data.question };
for (const [id, limits] of Object.entries(SLIDERS)) {
  limits[0] = Math.min(limits[0], asked[id] / 30);
  limits[1] = Math.max(limits[1], asked[id] * 30);
}

function show() {
  const q = question(asked.params, asked.sunk, asked.tokens, asked.experts), found = decide(q), far = outside(q);
  $("verdict").textContent = `${found.verdict[0].toUpperCase()}${found.verdict.slice(1)}: ${found.reason}`;
  $("verdict").style.borderColor = `var(--${{ "worth it": "s2", "not worth it": "s1", undecided: "muted" }[found.verdict]})`;
  $("outside").textContent = far.length ? `Outside what the law was fitted on: ${far.join(", ")}.` : "";
  showOptions(found, q);
  showFacts(found, q);
  showChart(found, q);
  for (const id of [...Object.keys(SLIDERS), "experts"]) {
    document.querySelector(`output[for=${id}]`).textContent = count(asked[id]);
  }
  const numbers = Object.keys(SLIDERS).map((id) => `--${id} ${Number(asked[id].toPrecision(6))}`).join(" ");
  $("command").textContent = `rekindle plan ${numbers}${data.denseAlone ? "" : ` --experts ${asked.experts}`}${data.further}`;
  $("answer").textContent = JSON.stringify({ question: q, outside: far, ...found }, (_, v) => (v === Infinity ? null : v));
}

for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
  if (name in asked && Number(value) > 0) asked[name] = Number(value);  // #params=1e9&tokens=5e10
}
for (const [id, [low, high]] of Object.entries(SLIDERS)) {
  const slider = $(id);
  [slider.min, slider.max, slider.value] = [Math.log10(low), Math.log10(high), Math.log10(asked[id])];
  slider.oninput = () => { asked[id] = Number((10 ** slider.value).toPrecision(3)); show(); };
}
if (data.denseAlone) $("experts").parentElement.style.display = "none";
[$("experts").min, $("experts").max, $("experts").value] = [2, 64, asked.experts];
$("experts").oninput = () => { asked.experts = Number($("experts").value); show(); };
window.onresize = show;
show();
