// The trace browser: dumps, groups, traces, and tokens coloured by what training saw of them.

const KINDS = ["context", "thought", "latent", "answer", "target"];
const CONTEXT = 0, LATENT = 2;
const FIRST = 8; // traces drawn before "show more"

const COLOURS = {
  advantage: { label: "advantage", key: "advantage" },
  gap: { label: "gap", key: "delta" },
  logprob: { label: "log-prob", key: "logprob" },
  none: { label: "nothing", key: null },
};
const SHOWS = { all: "all", passed: "passed", failed: "failed" };

// GAP_LOW..GAP_HIGH: decades over which the gap's colour grows. SURPRISE: nats at which the log-prob's colour is full.
const GAP_LOW = -7, GAP_HIGH = -1, SURPRISE = 6;

class TraceBrowser {
  constructor(runs, labels) {
    this.groups = []; // flat over runs and dumps; the number in #group=N
    this.dumps = [];
    this.labels = labels;
    runs.forEach((run, r) => run.dumps.forEach((dump) => {
      const at = { run: r, step: dump.step, split: dump.split, first: this.groups.length, count: dump.groups.length };
      dump.groups.forEach((group) => this.groups.push({ ...group, dump: this.dumps.length }));
      this.dumps.push(at);
    }));
    this.state = { group: 0, show: "all", colour: "advantage" };
    this.nodes = Object.fromEntries(["dump", "show", "colour", "scale", "groups", "group"].map((id) => [id, document.getElementById(id)]));
  }

  start() {
    if (!this.groups.length) {
      document.querySelector("#traces .browse").replaceChildren(el("p", { class: "empty" }, "No traces have been written yet."));
      document.querySelector("#traces .controls").hidden = true;
      return;
    }
    const last = this.dumps.filter((dump) => !dump.split).at(-1) || this.dumps.at(-1);
    this.state.group = last.first;
    const linked = this.readLink();
    const runs = new Set(this.dumps.map((dump) => dump.run));
    for (const run of runs) {
      for (const kind of ["train", "eval"]) {
        const own = this.dumps.map((dump, i) => [dump, i])
          .filter(([dump]) => dump.run === run && Boolean(dump.split) === (kind === "eval"));
        if (!own.length) continue;
        const label = `${runs.size > 1 ? `${this.labels[run]}: ` : ""}${kind === "eval" ? "held-out" : "training"}`;
        this.nodes.dump.append(el("optgroup", { label }, own.map(([dump, i]) =>
          el("option", { value: i }, dump.split ? `${dump.split}, version ${dump.step}` : `step ${dump.step}`))));
      }
    }
    this.nodes.dump.addEventListener("change", () => {
      const dump = Number(this.nodes.dump.value);
      this.go(this.visible(dump)[0] ?? this.dumps[dump].first);
    });
    choice(this.nodes.show, SHOWS, this.state.show, (value) => { this.state.show = value; this.settle(); });
    const labels = Object.fromEntries(Object.entries(COLOURS).map(([key, { label }]) => [key, label]));
    choice(this.nodes.colour, labels, this.state.colour, (value) => { this.state.colour = value; this.draw(); });
    addEventListener("hashchange", () => { if (this.readLink()) this.draw(); });
    addEventListener("keydown", (event) => this.key(event));
    this.draw();
    if (linked) document.getElementById("traces").scrollIntoView();
  }

  readLink() {
    const link = new URLSearchParams(location.hash.slice(1));
    const group = Number(link.get("group") ?? NaN);
    if (!(Number.isInteger(group) && group >= 0 && group < this.groups.length)) return false;
    this.state.group = group;
    if (link.get("colour") in COLOURS) this.state.colour = link.get("colour");
    if (link.get("show") in SHOWS) this.state.show = link.get("show");
    return true;
  }

  matches(trace) {
    return this.state.show === "all" || trace.passed === (this.state.show === "passed");
  }

  visible(dump) {
    const { first, count } = this.dumps[dump];
    return Array.from({ length: count }, (_, i) => first + i).filter((g) => this.groups[g].traces.some((trace) => this.matches(trace)));
  }

  // After the filter changed: stay if the group still shows something, else go to the nearest one that does.
  settle() {
    const shown = this.dumps.flatMap((_, dump) => this.visible(dump));
    if (shown.length && !shown.includes(this.state.group)) this.state.group = shown[nearest(shown, this.state.group)];
    this.go(this.state.group);
  }

  go(group) {
    this.state.group = group;
    const { show, colour } = this.state;
    const link = new URLSearchParams({ group, ...(show === "all" ? {} : { show }), ...(colour === "advantage" ? {} : { colour }) });
    history.replaceState(null, "", `#${link}`);
    this.draw();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input:not([type=radio])")) return;
    const step = { j: 1, k: -1 }[event.key], dump = { n: 1, p: -1 }[event.key];
    if (step) {
      const shown = this.dumps.flatMap((_, d) => this.visible(d));
      const next = shown[shown.indexOf(this.state.group) + step];
      if (next !== undefined) this.go(next);
    } else if (dump) {
      for (let d = this.groups[this.state.group].dump + dump; d >= 0 && d < this.dumps.length; d += dump) {
        const shown = this.visible(d);
        if (shown.length) return this.go(shown[0]);
      }
    } else if (event.key === "c") {
      const names = Object.keys(COLOURS);
      this.state.colour = names[(names.indexOf(this.state.colour) + 1) % names.length];
      this.go(this.state.group);
    }
  }

  draw() {
    const group = this.groups[this.state.group];
    this.nodes.dump.value = String(group.dump);
    for (const name of ["show", "colour"]) {
      for (const input of this.nodes[name].querySelectorAll("input")) input.checked = input.value === this.state[name];
    }
    hideTip();
    this.drawList(group.dump);
    this.drawScale(group);
    this.drawGroup(group);
  }

  drawList(dump) {
    const shown = this.visible(dump);
    const items = shown.map((g) => {
      const group = this.groups[g];
      const rewards = group.traces.map((trace) => trace.reward).filter(isNumber);
      const passed = group.traces.filter((trace) => trace.passed).length;
      const verdict = (trace) => (trace.outcome === "infra" ? "infra" : trace.passed ? "passed" : "failed");
      return el("button", { type: "button", "aria-current": g === this.state.group ? "true" : null, onclick: () => this.go(g),
        "aria-label": `group ${g}, task ${group.task}, ${passed} of ${group.traces.length} passed` },
        el("span", { class: "task" }, group.task || `group ${g}`),
        el("span", { class: "dots" }, group.traces.map((trace) => el("i", { class: verdict(trace) }))),
        el("span", { class: "mean" }, rewards.length ? (rewards.reduce((a, b) => a + b, 0) / rewards.length).toFixed(2) : "–"));
    });
    const list = this.nodes.groups, scrolled = list.scrollTop;
    list.replaceChildren(...(items.length ? items : [el("p", { class: "empty" }, `No ${this.state.show} trace in this dump.`)]));
    list.scrollTop = scrolled;
    const current = list.querySelector("[aria-current]")?.getBoundingClientRect(), frame = list.getBoundingClientRect();
    if (current && current.top < frame.top) list.scrollTop += current.top - frame.top; // scrolls the list, never the page
    else if (current && current.bottom > frame.bottom) list.scrollTop += current.bottom - frame.bottom;
  }

  // Largest |advantage| of the group: full colour.
  extent(group) {
    const values = group.traces.flatMap((trace) => trace.segments.flatMap((segment) => segment.advantage || [])).filter(isNumber);
    return most(values.map(Math.abs).concat(1e-9));
  }

  drawScale(group) {
    const mode = this.state.colour, extent = this.extent(group);
    const stops = {
      advantage: [["neg", -1], ["neg", -0.5], ["", 0], ["pos", 0.5], ["pos", 1]].map(([side, at]) => [side, Math.abs(at)]),
      gap: [0.25, 0.5, 0.75, 1].map((at) => ["gap", at]),
      logprob: [0.25, 0.5, 0.75, 1].map((at) => ["rare", at]),
      none: [],
    }[mode];
    const ends = {
      advantage: extent > 1e-8 ? [`−${short(extent)}`, `+${short(extent)}`] : ["no advantage", "in this group"],
      gap: [`≤ 1e${GAP_LOW}`, `≥ 1e${GAP_HIGH} nats`],
      logprob: ["0", `≤ −${SURPRISE} nats`],
      none: ["", ""],
    }[mode];
    if (mode === "advantage" && extent <= 1e-8) stops.length = 0;
    const boxes = stops.map(([side, at]) => el("i", { class: `tok ${side}`, "--w": `${weigh(at)}%` }));
    this.nodes.scale.replaceChildren(...(boxes.length ? [ends[0], ...boxes, ends[1]] : [ends.join(" ")]));
  }

  drawGroup(group) {
    const dump = this.dumps[group.dump];
    const traces = group.traces.filter((trace) => this.matches(trace));
    const passed = group.traces.filter((trace) => trace.passed).length;
    const where = dump.split ? `${dump.split}, version ${dump.step}` : `step ${dump.step}`;
    const cards = (some) => some.map((trace) => this.card(trace, group.traces.indexOf(trace), this.extent(group)));
    const hidden = group.left_out ? ` · ${group.left_out} more not shown` : "";
    const rest = el("div", {});
    const more = traces.length > FIRST ? el("button", { type: "button", class: "more", onclick: (event) => {
      event.target.remove();
      rest.append(...cards(traces.slice(FIRST)));
    } }, `Show ${traces.length - FIRST} more`) : null;
    fill(this.nodes.group, { "data-group": this.state.group }, []).replaceChildren(...[
      el("h3", {}, group.task || `group ${this.state.group}`,
        el("small", {}, `${where} · ${passed} of ${group.traces.length} passed${hidden}`)),
      el("div", { class: "prompt" }, el("h4", {}, "prompt"), el("pre", {}, group.prompt)),
      group.answer === null ? null : el("details", { class: "good" }, el("summary", {}, "a good answer"), el("pre", {}, group.answer)),
      traces.length ? null : el("p", { class: "empty" }, `No ${this.state.show} trace in this group.`),
      ...cards(traces.slice(0, FIRST)), more, rest,
    ].filter(Boolean));
  }

  card(trace, number, extent) {
    const verdict = trace.outcome === "infra" ? ["infra", "masked"] : trace.passed ? ["passed", "✓ passed"] : ["failed", "✗ failed"];
    const width = (value) => `${100 * Math.min(1, Math.max(0, value || 0))}%`;
    const parts = Object.entries(trace.components).map(([name, value]) => el("div", { class: "part" },
      el("span", {}, name), el("i", { class: "meter", "--w": width(value) }), el("b", {}, short(value))));
    const body = el("div", { class: "body", tabindex: 0, role: "group", "aria-label": `tokens of trace ${number + 1}` });
    const segments = trace.segments.filter((segment, i) => !(i === 0 && segment.kind === CONTEXT)); // the prompt stands above
    const turns = new Set(segments.map((segment) => segment.turn)).size > 1;
    for (const segment of segments) body.append(this.segment(segment, extent, turns));
    if (!segments.length) body.append(el("p", { class: "empty" }, "nothing was sampled"));
    body.addEventListener("pointermove", ({ target, clientX, clientY }) => {
      if (target.facts) showTip(clientX, clientY, target.facts());
      else hideTip();
    });
    body.addEventListener("pointerleave", hideTip);
    body.addEventListener("blur", () => { hideTip(); body.querySelector(".here")?.classList.remove("here"); });
    body.addEventListener("keydown", (event) => this.walk(event, body));
    return el("section", { class: `trace ${verdict[0]}`, "aria-label": `trace ${number + 1}, ${verdict[1]}` },
      el("header", {}, el("span", { class: "no" }, `#${number + 1}`), el("span", { class: `verdict ${verdict[0]}` }, verdict[1]),
        el("span", { class: "reward" }, "reward ", el("b", {}, short(trace.reward))),
        el("span", { class: "dim" }, [`${trace.length} tokens`, isNumber(trace.version) ? `version ${trace.version}` : null,
          trace.outcome === "ok" ? null : trace.outcome].filter(Boolean).join(" · "))),
      parts.length ? el("div", { class: "parts" }, parts) : null,
      trace.note ? el("p", { class: "note" }, trace.note) : null, body);
  }

  segment(segment, extent, turns) {
    const name = KINDS[segment.kind] || `kind ${segment.kind}`;
    const label = `${segment.kind === CONTEXT ? "observation" : name}${turns ? `, turn ${segment.turn + 1}` : ""}`;
    const text = el("div", { class: "text" });
    if (segment.kind === CONTEXT) text.append(segment.text);
    else segment.tokens.forEach((token, i) => text.append(this.token(segment, token, i, extent)));
    return el("div", { class: `segment ${name}` }, el("h4", {}, label,
      segment.tokens ? el("small", {}, ` ${segment.tokens.length}`) : null), text);
  }

  token(segment, token, i, extent) {
    const at = (key) => (segment[key] ? segment[key][i] : null);
    const [advantage, delta, logprob] = [at("advantage"), at("delta"), at("logprob")];
    let side = "", share = 0;
    if (this.state.colour === "advantage" && isNumber(advantage) && advantage !== 0) {
      [side, share] = [advantage > 0 ? "pos" : "neg", Math.abs(advantage) / extent];
    } else if (this.state.colour === "gap" && isNumber(delta) && delta !== 0) {
      [side, share] = ["gap", (Math.log10(Math.abs(delta)) - GAP_LOW) / (GAP_HIGH - GAP_LOW)];
    } else if (this.state.colour === "logprob" && isNumber(logprob)) {
      [side, share] = ["rare", -logprob / SURPRISE];
    }
    share = Math.min(1, Math.max(0, share));
    const node = el("span", { class: `tok ${share > 0 ? side : ""}`, "--w": share > 0 ? `${weigh(share)}%` : null },
      segment.kind === LATENT ? "◆" : token === "" ? "∅" : visible(token));
    node.facts = () => {
      const rows = [["token", JSON.stringify(token)], ["position", segment.at + i]];
      if (isNumber(advantage)) rows.push(["advantage", advantage.toPrecision(4)]);
      if (isNumber(logprob)) rows.push(["log-prob", `${logprob.toPrecision(4)} (p ${Math.exp(logprob).toPrecision(3)})`]);
      if (isNumber(delta)) rows.push(["learner − sampler", delta === 0 ? "0" : delta.toExponential(1)]);
      return [el("dl", {}, rows.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, String(value))]))];
    };
    return node;
  }

  walk(event, body) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const tokens = [...body.querySelectorAll(".tok")];
    const here = tokens.findIndex((token) => token.classList.contains("here"));
    const next = tokens[Math.min(tokens.length - 1, Math.max(0, here + step))];
    if (!next) return;
    tokens[here]?.classList.remove("here");
    next.classList.add("here");
    next.scrollIntoView({ block: "nearest" });
    const box = next.getBoundingClientRect();
    showTip(box.left, box.bottom, next.facts(), box.top);
  }
}

// Share of full colour to percent of ink: visible from the first step, text still readable at the last.
const weigh = (share) => Math.round(share === 0 ? 0 : 8 + 52 * share);

// Control characters as the symbols that stand for them (U+2400 and on); tabs and line ends stay what they are.
const picture = (c) => String.fromCharCode(c === "\x7f" ? 0x2421 : 0x2400 + c.charCodeAt(0));
const visible = (text) => text.replace(/[\x00-\x08\x0b-\x1f\x7f]/g, picture);

// A row of radio buttons in a fieldset.
function choice(fieldset, labels, chosen, change) {
  for (const [value, label] of Object.entries(labels)) {
    fieldset.append(el("label", {}, el("input", { type: "radio", name: fieldset.id, value, checked: value === chosen,
      onchange: () => change(value) }), el("span", {}, label)));
  }
}
