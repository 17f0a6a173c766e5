// Drawing: elements, numbers, line charts with bands and a shared crosshair, stacked bars. Text only ever enters the page
// as text nodes and attributes, never as markup.

const SVG = document.getElementById("blank").namespaceURI;

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) node.style.setProperty(key, value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const colour = (index) => `var(--c${index % 8})`;
const swatch = (tint) => el("i", { class: "swatch", "--c": tint });
const DASHES = ["", "5 3", "2 3", "8 3 2 3"];

// ---- numbers

function short(value, digits = 3) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e15 || size < 1e-3) return value.toExponential(1).replace(".0e", "e").replace("e+", "e").replace(/^-/, "−");
  for (const [scale, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= scale) return `${trim((value / (unit === "k" ? 1e3 : scale)).toPrecision(digits))} ${unit}`;
  }
  return trim(value.toPrecision(size >= 1000 ? Math.max(4, digits) : digits)).replace("-", "−");
}

// "1.50" as "1.5", "2.0" as "2".
const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
const percent = (value) => (isNumber(value) ? `${(100 * value).toFixed(1)} %` : "–");

function clock(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds === 0) return "0 s";
  if (seconds < 1e-3) return `${Number((seconds * 1e6).toPrecision(2))} µs`;
  if (seconds < 0.1) return `${Number((seconds * 1e3).toPrecision(2))} ms`;
  if (seconds < 60) return `${trim(seconds.toPrecision(seconds < 1 ? 2 : 3))} s`;
  if (seconds < 3600) return `${trim((seconds / 60).toFixed(1))} min`;
  return `${trim((seconds / 3600).toFixed(2))} h`;
}

function ticks(low, high, count, steps = [1, 2, 5, 10]) {
  const rough = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = steps.map((m) => m * power).find((s) => s >= rough * 0.999);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(Number((i * step).toPrecision(12)));
  return out;
}

// Ticks with their labels, in as many digits as tell them apart.
function labelled(values, format) {
  for (let digits = 3; ; digits++) {
    const labels = values.map((value) => format(value, digits).replace(".0 %", " %"));
    if (digits === 8 || new Set(labels).size === labels.length) return values.map((value, i) => [value, labels[i]]);
  }
}

function decades(low, high, count) {
  const first = Math.ceil(low - 1e-9), last = Math.floor(high + 1e-9), out = [];
  const stride = Math.max(1, Math.ceil((last - first + 1) / count));
  for (let power = first; power <= last; power += stride) out.push(power);
  return out;
}

// Exponential moving average, corrected for its start; a gap in the data stays a gap.
function smoothed(values, weight) {
  let sum = 0, mass = 0;
  return values.map((value) => {
    if (!isNumber(value)) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

// ---- line charts

const plots = []; // every chart on the page: they share the crosshair

const tip = document.getElementById("tip");

// Below the point (x, y), or above `top` where the window ends.
function showTip(x, y, rows, top = y) {
  tip.replaceChildren(...rows);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${y + 18 + box.height > innerHeight ? Math.max(8, top - box.height - 12) : y + 18}px`;
}

const hideTip = () => (tip.hidden = true);

// spec: {title, unit, series: [{name, colour, dash, x, y, low, high, faint, dots}], key: [{name, colour, dash}], log, format,
// axis: {name, format, whole (its values are integers)}, height, bound, from, to}. x, y, low, high: equally long arrays, null
// where unknown; faint: drawn behind, not named; bound: a horizontal line; from, to: the vertical axis reaches these.
function plot(figure, spec) {
  const old = plots.findIndex((other) => other.figure === figure);
  if (old >= 0) plots.splice(old, 1);
  const format = spec.format || short;
  const named = spec.series.filter((series) => !series.faint);
  const positive = (value) => isNumber(value) && value > 0;
  const log = spec.log && spec.series.some((series) => series.y.some(positive));
  const place = log ? (value) => (positive(value) ? Math.log10(value) : null) : (value) => (isNumber(value) ? value : null);

  const head = el("figcaption", {}, el("span", {}, spec.title), spec.unit ? el("small", {}, spec.unit) : null);
  if (spec.key?.length > 1) {
    head.append(el("span", { class: "key" }, spec.key.map((entry) => el("span", {},
      svg("svg", { width: 16, height: 8 }, svg("line", { x1: 0, x2: 16, y1: 4, y2: 4, stroke: entry.colour, "stroke-width": 2,
        "stroke-dasharray": entry.dash || null })), entry.name))));
  } else if (named.length === 1) {
    const last = named[0].y.filter(isNumber).at(-1);
    head.append(el("output", {}, format(last)));
  }

  const width = Math.max(200, figure.clientWidth - 2), height = spec.height || 168;
  const left = 50, right = 14, top = 8, bottom = 24;
  const all = (pick) => spec.series.flatMap(pick).filter(isNumber);
  const xs = all((series) => series.x);
  const ys = all((series) => [...series.y, ...(series.low || []), ...(series.high || [])].map(place));
  if (!xs.length || !ys.length) {
    figure.replaceChildren(head, el("p", { class: "empty" }, "no values yet"));
    return;
  }
  if (spec.bound && isNumber(place(spec.bound))) ys.push(place(spec.bound));
  if (!log && isNumber(spec.from)) ys.push(spec.from);
  if (!log && isNumber(spec.to)) ys.push(spec.to);
  let [x0, x1, y0, y1] = [least(xs), most(xs), least(ys), most(ys)];
  if (x0 === x1) [x0, x1] = [x0 - 0.5, x1 + 0.5];
  if (y1 - y0 <= 1e-9 * Math.abs(y1)) { // constant, but for rounding
    const room = log ? 0.5 : Math.abs(y0) * 0.1;
    [y0, y1] = y0 === 0 && !log ? [0, 1] : [y0 - room, y1 + room];
  }
  const pad = (y1 - y0) * 0.06;
  if ((!isNumber(spec.from) || y0 < spec.from || log) && y0 !== 0) y0 -= pad;
  if (!isNumber(spec.to) || y1 > spec.to || log) y1 += pad;
  const X = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const Y = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);

  const words = named.map(({ name, y }) => `${name} from ${format(y.find(isNumber))} to ${format(y.filter(isNumber).at(-1))}`);
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${spec.title}: ${words.join("; ")}` });
  const grid = log ? decades(y0, y1, 5).map((p) => [p, `1e${p}`]) : labelled(ticks(y0, y1, 4, [1, 2, 2.5, 5, 10]), format);
  for (const [at, label] of grid) {
    root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: Y(at), y2: Y(at) }));
    root.append(svg("text", { class: "tick", x: left - 8, y: Y(at) + 4, "text-anchor": "end" }, label));
  }
  const count = spec.axis.whole ? Math.min(x1 - x0, width / 75) : width / 75;
  for (const at of ticks(x0, x1, Math.max(2, count))) {
    root.append(svg("text", { class: "tick", x: X(at), y: height - 6, "text-anchor": "middle" }, spec.axis.format(at)));
  }
  if (spec.bound && isNumber(place(spec.bound))) {
    const at = Y(place(spec.bound));
    root.append(svg("line", { class: "bound", x1: left, x2: width - right, y1: at, y2: at }));
    root.append(svg("text", { class: "tick bound-label", x: width - right, y: at - 4, "text-anchor": "end" },
      `bound ${short(spec.bound)}`));
  }
  for (const series of spec.series) {
    if (series.low) root.append(svg("path", { class: "band", d: band(series, X, Y, place), fill: series.colour }));
  }
  for (const series of spec.series) {
    root.append(svg("path", { class: series.faint ? "line faint" : "line", d: line(series.x, series.y.map(place), X, Y),
      stroke: series.colour, "stroke-dasharray": series.dash || null, "data-series": series.name }));
    const lone = series.y.filter(isNumber).length === 1;
    if (series.dots || lone) {
      series.x.forEach((x, i) => isNumber(x) && isNumber(place(series.y[i])) &&
        root.append(svg("circle", { cx: X(x), cy: Y(place(series.y[i])), r: 2.6, fill: series.colour })));
    }
  }
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  const marks = named.map((series) => svg("circle", { r: 3.5, fill: series.colour, class: "mark", visibility: "hidden" }));
  root.append(cursor, ...marks);

  const chart = { figure, cross(x) { // x in data units, null to clear
    const at = x === null ? null : X(Math.min(Math.max(x, x0), x1));
    cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
    if (at !== null) fill(cursor, { x1: at, x2: at }, []);
    return named.map((series, s) => {
      const i = x === null ? -1 : nearest(series.x, x);
      const y = i < 0 ? null : place(series.y[i]);
      marks[s].setAttribute("visibility", isNumber(y) ? "visible" : "hidden");
      if (isNumber(y)) fill(marks[s], { cx: X(series.x[i]), cy: Y(y) }, []);
      return i;
    });
  } };
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const x = x0 + ((event.clientX - box.left - left) / (width - left - right)) * (x1 - x0);
    const at = chart.cross(x);
    plots.forEach((other) => other !== chart && other.cross(x));
    const i = at.find((place) => place >= 0);
    if (i === undefined) return;
    const s = at.indexOf(i);
    showTip(event.clientX, event.clientY, [
      el("b", {}, `${spec.axis.name} ${spec.axis.format(named[s].x[i])}`),
      ...named.map((series, n) => at[n] < 0 ? null : el("div", {}, swatch(series.colour),
        `${series.name} `, el("b", {}, format(series.y[at[n]])),
        series.low && isNumber(series.low[at[n]]) ? ` [${format(series.low[at[n]])}, ${format(series.high[at[n]])}]` : "")).filter(Boolean),
    ]);
  });
  root.addEventListener("pointerleave", () => { plots.forEach((other) => other.cross(null)); hideTip(); });
  figure.replaceChildren(head, root);
  plots.push(chart);
}

const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

function nearest(xs, x) {
  let best = -1;
  xs.forEach((value, i) => { if (isNumber(value) && (best < 0 || Math.abs(value - x) < Math.abs(xs[best] - x))) best = i; });
  return best;
}

function line(xs, ys, X, Y) {
  let path = "", pen = false;
  xs.forEach((x, i) => {
    const here = isNumber(x) && isNumber(ys[i]);
    if (here) path += `${pen ? "L" : "M"}${X(x).toFixed(1)} ${Y(ys[i]).toFixed(1)}`;
    pen = here;
  });
  return path;
}

function band(series, X, Y, place) {
  const points = series.x.map((x, i) => [x, place(series.low[i]), place(series.high[i])]).filter((point) => point.every(isNumber));
  if (!points.length) return "";
  const edge = (k) => points.map((point) => `${X(point[0]).toFixed(1)} ${Y(point[k]).toFixed(1)}`);
  return `M${edge(2).join("L")}L${edge(1).reverse().join("L")}Z`;
}

// ---- stacked bars

// One bar per window of steps. parts: [{name, colour, values}], values in `format`'s unit, aligned with steps.
function stack(figure, { title, steps, parts, format }) {
  const width = Math.max(240, figure.clientWidth - 2), height = 230, left = 52, right = 8, top = 8, bottom = 24;
  const bars = Math.min(steps.length, Math.max(10, Math.floor((width - left - right) / 5)));
  const size = Math.ceil(steps.length / Math.max(1, bars));
  const columns = [];
  for (let i = 0; i < steps.length; i += size) {
    const n = Math.min(size, steps.length - i);
    columns.push({ from: steps[i], to: steps[i + n - 1],
      values: parts.map((part) => part.values.slice(i, i + n).reduce((a, b) => a + (b || 0), 0) / n) });
  }
  const high = most(columns.map((column) => column.values.reduce((a, b) => a + b, 0))) || 1;
  const root = svg("svg", { width, height, role: "img", "aria-label": `${title}: up to ${format(high)} a step` });
  const Y = (y) => height - bottom - (y / high) * (height - top - bottom);
  for (const at of ticks(0, high, 4)) {
    root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: Y(at), y2: Y(at) }));
    root.append(svg("text", { class: "tick", x: left - 8, y: Y(at) + 4, "text-anchor": "end" }, format(at)));
  }
  const pitch = (width - left - right) / columns.length;
  const every = Math.max(1, Math.ceil(60 / pitch));
  columns.forEach((column, i) => {
    const bar = svg("g", { class: "column" });
    let base = 0;
    parts.forEach((part, p) => {
      const value = column.values[p];
      if (value > 0) bar.append(svg("rect", { x: left + i * pitch, width: Math.max(0.5, pitch - (pitch > 3 ? 1 : 0)),
        y: Y(base + value), height: Y(base) - Y(base + value), fill: part.colour }));
      base += value;
    });
    const range = column.from === column.to ? `step ${column.from}` : `steps ${column.from} to ${column.to}`;
    bar.addEventListener("pointermove", (event) => showTip(event.clientX, event.clientY, [el("b", {}, `${range}: ${format(base)}`),
      ...parts.map((part, p) => column.values[p] > 0 ? el("div", {}, swatch(part.colour),
        `${part.name} `, el("b", {}, format(column.values[p]))) : null).filter(Boolean).reverse()]));
    root.append(bar);
    if (i % every === 0) {
      const x = left + (i + 0.5) * pitch;
      root.append(svg("text", { class: "tick", x, y: height - 6, "text-anchor": "middle" }, String(column.from)));
    }
  });
  root.addEventListener("pointerleave", hideTip);
  figure.replaceChildren(el("figcaption", {}, el("span", {}, title)), root);
}
