// The page: which series go where, one run or several, and the controls around them.

const { runs, groups } = JSON.parse(document.getElementById("data").textContent);
const state = { axis: "step", smooth: 0.8, hidden: new Set() };

const AXES = {
  step: { label: "step", name: "step", format: (x) => String(Number(x.toFixed(1))), whole: true },
  seconds: { label: "time", name: "after", format: clock },
  flops: { label: "compute", name: "FLOPs", format: short },
};

// keys: metric names; "stem/" stands for every stem/NAME and "/tail" for every NAME/tail, one series each, named NAME.
const CHARTS = [
  { title: "Training reward", unit: "mean of the batch", keys: ["reward/mean"] },
  { title: "Training pass rate", keys: ["pass_rate"], format: percent, from: 0 },
  { title: "Grade by component", unit: "mean of the batch", keys: ["component/"], from: 0 },
  { title: "Length", unit: "tokens a trace", keys: ["length/mean"] },
  { title: "Entropy", unit: "nats a token", keys: ["entropy", "/entropy"] },
  { title: "Gradient norm", unit: "before clipping", keys: ["grad_norm/"] },
  { title: "Sampler/learner gap", unit: "|Δ log-prob|", keys: ["gap/max", "gap/mean"], log: true, plain: true },
  { title: "Staleness", unit: "versions", keys: ["staleness/max", "staleness/mean"], plain: true, from: 0 },
  { title: "Loss", keys: ["loss/"] },
];

const several = runs.length > 1;
const unique = (values) => [...new Set(values)];
const metricNames = unique(runs.flatMap((run) => Object.keys(run.train.metrics)));
const splits = unique(runs.flatMap((run) => Object.keys(run.evaluations)));

// The metrics of a chart as [{key, name}].
function expand(keys) {
  return keys.flatMap((key) => metricNames.flatMap((name) => {
    if (key.endsWith("/") && name.startsWith(key)) return { key: name, name: name.slice(key.length) };
    if (key.startsWith("/") && name.endsWith(key)) return { key: name, name: name.slice(0, -key.length) };
    return key === name ? { key, name: key.split("/").at(-1) } : [];
  }));
}

// Mean and range over the runs of a group, at the steps that all of them have reached.
function average(members, pick) {
  const columns = members.map(pick).filter(Boolean);
  if (columns.length === 1) return columns[0];
  const out = { x: [], y: [], low: [], high: [] };
  const rows = columns.map((column) => new Map(column.step.map((step, i) => [step, i])));
  for (const step of columns[0]?.step ?? []) {
    if (!rows.every((row) => row.has(step))) continue;
    const at = columns.map(({ x, y }, c) => [x[rows[c].get(step)], y[rows[c].get(step)]]).filter((point) => point.every(isNumber));
    const ys = at.map((point) => point[1]);
    const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
    out.x.push(mean(at.map((point) => point[0])));
    out.y.push(mean(ys));
    out.low.push(ys.length ? least(ys) : null);
    out.high.push(ys.length ? most(ys) : null);
  }
  return out;
}

// How the metrics of one chart are told apart: by colour, or by dashes where colours stand for runs.
function looks(spec) {
  return expand(spec.keys).map(({ name }, k, all) => ({
    name: all.length > 1 ? name : spec.title.toLowerCase(),
    colour: several ? "var(--soft)" : colour(k),
    dash: several ? DASHES[k % DASHES.length] : "",
  }));
}

function trainSeries(spec) {
  const keys = expand(spec.keys), look = looks(spec);
  const weight = spec.plain ? 0 : state.smooth;
  return groups.flatMap((group, g) => state.hidden.has(g) ? [] : keys.flatMap(({ key }, k) => {
    const columns = average(group.runs.map((r) => runs[r].train), (train) => train.metrics[key] &&
      { step: train.step, x: train[state.axis], y: train.metrics[key] });
    if (!columns.y?.some(isNumber)) return [];
    const name = keys.length > 1 ? `${group.name}, ${look[k].name}` : group.name;
    const main = { ...look[k], ...(several ? { name, colour: colour(g) } : {}), x: columns.x, y: smoothed(columns.y, weight) };
    if (columns.low) return [{ ...main, low: smoothed(columns.low, weight), high: smoothed(columns.high, weight) }];
    return weight ? [{ ...main, name: "", y: columns.y, dash: "", faint: true }, main] : [main];
  }));
}

function evalSeries(split, metric) {
  return groups.flatMap((group, g) => {
    if (state.hidden.has(g)) return [];
    const columns = average(group.runs.map((r) => runs[r].evaluations[split]), (at) => at?.[metric] &&
      { step: at.step, x: at[state.axis], y: at[metric], ...(metric === "pass@1" && at.low ? { low: at.low, high: at.high } : {}) });
    if (!columns?.y?.some(isNumber)) return [];
    const { x, y, low, high } = columns;
    return [{ name: several ? group.name : metric, colour: colour(several ? g : splits.indexOf(split)), x, y, low, high, dots: true }];
  });
}

const averaged = groups.some((group) => group.runs.length > 1);

function drawCurves() {
  const axis = AXES[state.axis];
  const draw = []; // every figure stands before the first is drawn: their widths depend on each other
  const chart = (host, key, spec) => {
    const figure = host.querySelector(`[data-key="${CSS.escape(key)}"]`) || host.appendChild(el("figure", { "data-key": key }));
    draw.push(() => plot(figure, { ...spec, axis }));
  };
  for (const split of splits) {
    chart(document.getElementById("evaluations"), split, { title: `Held-out pass@1, ${split}`, format: percent, from: 0, to: 1, height: 250,
      unit: averaged ? "mean and range over seeds" : "95 % interval", series: evalSeries(split, "pass@1") });
  }
  for (const spec of CHARTS) {
    const keys = expand(spec.keys);
    const bounds = runs.map((run) => run.bound).filter((bound) => keys.some(({ key }) => key === bound.key)).map((bound) => bound.value);
    if (keys.length) {
      const bound = bounds.length ? least(bounds) : null;
      chart(document.getElementById("charts"), spec.title, { ...spec, series: trainSeries(spec), key: looks(spec), bound });
    }
  }
  const more = document.getElementById("more");
  if (more.open) drawMore((key, spec) => chart(more.querySelector(".charts"), key, spec));
  for (const one of draw) one();
}

function drawMore(chart) {
  const shown = new Set([...CHARTS.flatMap((spec) => expand(spec.keys).map(({ key }) => key)), ...Object.keys(AXES),
    "pass@1", "low", "high", "n", "samples", "time/total", ...STAGES.map((stage) => `time/${stage}`)]);
  for (const split of splits) {
    const metrics = unique(runs.flatMap((run) => Object.keys(run.evaluations[split] ?? {})));
    for (const metric of metrics.filter((name) => !shown.has(name))) {
      chart(`eval/${split}/${metric}`, { title: metric, unit: split, series: evalSeries(split, metric) });
    }
  }
  for (const key of metricNames.filter((name) => !shown.has(name) && !name.startsWith("flops/"))) {
    chart(key, { title: key, series: trainSeries({ title: key, keys: [key] }) });
  }
}

function drawLegend() {
  const host = document.getElementById("legend");
  if (!several) return host.remove();
  const toggle = (g) => {
    if (!state.hidden.delete(g)) state.hidden.add(g);
    drawLegend();
    drawCurves();
  };
  host.replaceChildren(...groups.map((group, g) =>
    el("button", { type: "button", "aria-pressed": String(!state.hidden.has(g)), onclick: () => toggle(g) },
      swatch(colour(g)), group.name, group.runs.length > 1 ? el("small", {}, ` ${group.runs.length} seeds`) : null)));
}

// ---- time and compute of one run

const STAGES = ["wait", "score", "credit", "forward_backward", "optimiser", "publish", "log", "checkpoint", "eval", "other"];
const STAGE_COLOURS = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((i) => `var(--c${i})`);
const stageColour = (name) => STAGE_COLOURS[STAGES.indexOf(name)] || "var(--faint)";
const stageName = (name) => ({ wait: "wait for samples", forward_backward: "forward and backward" })[name] || name.replaceAll("_", " ");

function drawTime(run) {
  const stages = STAGES.map((name) => [name, run.stages[name]]).filter(([, seconds]) => seconds > 0);
  const host = document.getElementById("stages"), shares = document.getElementById("shares");
  if (!stages.length) {
    host.replaceChildren(el("p", { class: "empty" }, "No stage times recorded yet."));
    shares.replaceChildren();
  } else {
    const columns = run.train.metrics, steps = run.train.step;
    const at = (name, i) => columns[`time/${name}`]?.[i] || 0;
    const rest = (i) => Math.max(0, at("total", i) - stages.reduce((sum, [name]) => sum + (name === "other" ? 0 : at(name, i)), 0));
    const parts = stages.map(([name]) => ({ name: stageName(name), colour: stageColour(name),
      values: steps.map((_, i) => (name === "other" ? rest(i) : at(name, i))) }));
    const figure = host.querySelector("figure") || host.appendChild(el("figure"));
    stack(figure, { title: "Seconds a step, by stage", steps, parts, format: clock });
    const total = stages.reduce((sum, [, seconds]) => sum + seconds, 0);
    const rows = [...stages].sort((a, b) => b[1] - a[1]).map(([name, seconds]) => el("tr", {},
      el("th", { scope: "row" }, swatch(stageColour(name)), stageName(name)),
      el("td", {}, el("i", { class: "meter", "--w": `${(100 * seconds) / total}%` })),
      el("td", {}, `${((100 * seconds) / total).toFixed(1)} %`), el("td", {}, clock(seconds))));
    const head = el("tr", {}, ["stage", "", "share", "total"].map((name) => el("th", { scope: "col" }, name)));
    shares.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, rows)));
  }
  const spent = Object.entries(run.train.metrics).filter(([key]) => key.startsWith("flops/"))
    .map(([key, values]) => [key.slice(6), values.filter(isNumber).at(-1) ?? 0]).filter(([, value]) => value > 0);
  const sum = spent.reduce((all, [, value]) => all + value, 0);
  const share = (value) => `${((100 * value) / sum).toFixed(1)} %`;
  document.getElementById("flops").replaceChildren(...(sum ? [
    el("h3", {}, "FLOPs by stage", el("small", {}, `${short(sum)} in all`)),
    el("div", { class: "strip", role: "img", "aria-label": spent.map(([name, value]) => `${name} ${share(value)}`).join(", ") },
      spent.map(([, value], i) => el("i", { "--w": `${(100 * value) / sum}%`, "--c": colour(i) }))),
    el("p", { class: "key" }, spent.map(([name, value], i) => el("span", {}, swatch(colour(i)),
      `${name.replaceAll("_", " ")} `, el("b", {}, share(value)), ` ${short(value)}`)))] : []));
}

// ---- controls

function start() {
  const known = Object.entries(AXES).filter(([key]) => key === "step" || runs.some((run) => run.train[key].some(isNumber)));
  choice(document.getElementById("axis"), Object.fromEntries(known.map(([key, { label }]) => [key, label])), "step", (value) => {
    state.axis = value;
    drawCurves();
  });
  const smooth = document.getElementById("smooth");
  if (most(runs.map((run) => run.train.step.length).concat(0)) < 12) smooth.value = "0"; // too few points to hide any
  state.smooth = Number(smooth.value);
  smooth.addEventListener("input", () => { state.smooth = Number(smooth.value); drawCurves(); });
  document.getElementById("more").addEventListener("toggle", drawCurves);

  const pick = document.getElementById("time-run");
  const labels = runs.map((run) => (several && isNumber(run.seed) ? `${run.name}, seed ${run.seed}` : run.name));
  pick.append(...labels.map((label, i) => el("option", { value: i }, label)));
  pick.parentNode.hidden = !several;
  pick.addEventListener("change", () => drawTime(runs[pick.value]));

  const draw = () => { drawCurves(); drawTime(runs[pick.value]); };
  drawLegend();
  draw();
  new TraceBrowser(runs, labels).start();
  let width = innerWidth, wait = 0;
  addEventListener("resize", () => {
    clearTimeout(wait);
    wait = setTimeout(() => { if (innerWidth !== width) { width = innerWidth; draw(); } }, 120);
  });
}

start();
