"use strict";
// The page's only script of ours. It reads what the page holds, asks the network for nothing, and puts untrusted text
// into the page as text alone: textContent, and plain() where a chart library would read markup.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const { traits, checkpoints, prompts, steps } = data;
  const SMOOTHED = 8;
  const LEAST_UNDERLINED = 0.5;
  const LEAST_REACH = 2;
  // Okabe and Ito's colours with a darker yellow, and lighter ones of the same order for dark screens.
  const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f8a1e", "#7a7a7a"];
  const LIGHT_PALETTE = ["#4aa8e8", "#ff8c42", "#2fc28f", "#e08bc0", "#f0b030", "#9ad4f5", "#c9c24a", "#b0b0b0"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];

  // ---- packed numbers -------------------------------------------------------------------------------------------

  const MISSING = -32768;
  const unpacking = new Map();

  function unpack(name, Kind) {
    if (!unpacking.has(name)) unpacking.set(name, inflate(name).then((buffer) => new Kind(buffer)));
    return unpacking.get(name);
  }

  async function inflate(name) {
    const bytes = Uint8Array.from(atob($(`blob-${name}`).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  async function unpackSteps(name, step) {
    const whole = await unpack(name, Int16Array);
    return Float32Array.from(whole, (value) => (value === MISSING ? NaN : value * step));
  }

  // ---- one prompt -----------------------------------------------------------------------------------------------

  class Prompt {
    constructor(described, number) {
      Object.assign(this, described);
      this.number = number;
      this.texts = Array.from($(`tokens-${number}`).content.querySelectorAll("span"), (span) => span.textContent);
    }

    async load() {
      if (this.loaded) return this;
      this.atReadout = await unpackSteps(this.readout, steps.z);
      this.nats = await unpack(this.logprob, Float32Array);
      if (this.layers) {
        this.everywhere = await unpackSteps(this.layers, steps.z);
        this.written = await unpackSteps(this.writes, steps.write);
      }
      this.loaded = true;
      return this;
    }

    /** z of a trait at a checkpoint along all positions, or null where the page does not hold it. */
    z(trait, checkpoint) {
      if (checkpoint === traits[trait].readout) return this.atReadout.subarray(trait * this.n, (trait + 1) * this.n);
      if (!this.layers) return null;
      const from = (trait * checkpoints.length + checkpoint) * this.n;
      return this.everywhere.subarray(from, from + this.n);
    }

    /** What each block wrote towards a trait at one position: [checkpoint, value] pairs up to its readout. */
    writesAt(trait, position) {
      const found = [];
      for (let c = 1; this.layers && c <= traits[trait].readout; c++) {
        const value = this.written[(trait * checkpoints.length + c) * this.n + position];
        if (!Number.isNaN(value)) found.push([c, value]);
      }
      return found;
    }
  }

  const held = prompts.map((described, number) => new Prompt(described, number));
  const byGeneration = new Map(held.map((prompt) => [prompt.generation, prompt]));
  const state = { prompt: 0, trait: 0, checkpoint: traits.length ? traits[0].readout : 0, token: 0 };

  // ---- colours and charts ---------------------------------------------------------------------------------------

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const diverging = () => [[0, ink("--minus")], [0.5, ink("--paper")], [1, ink("--plus")]];
  const rising = () => [[0, ink("--paper")], [1, ink("--plus")]];
  const isDark = () => dark.matches && document.documentElement.dataset.paper === undefined;
  const colourOf = (k) => (isDark() ? LIGHT_PALETTE : PALETTE)[k % PALETTE.length];
  const lineOf = (k) => ({ color: colourOf(k), dash: DASHES[Math.floor(k / PALETTE.length) % DASHES.length] });

  function draw(id, traces, layout = {}, onClick = null) {
    const axis = { gridcolor: ink("--line"), zerolinecolor: ink("--quiet"), linecolor: ink("--line"), automargin: true };
    const merged = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", dragmode: false,
      font: { color: ink("--ink"), size: 12, family: "system-ui, sans-serif" }, margin: { l: 50, r: 12, t: 10, b: 40 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      hoverlabel: { bgcolor: ink("--raised"), font: { color: ink("--ink") } },
      ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
    };
    const chart = $(id);
    Plotly.react(chart, traces, merged, { displayModeBar: false, responsive: true, scrollZoom: false });
    chart.removeAllListeners?.("plotly_click");
    if (onClick) chart.on("plotly_click", (event) => onClick(event.points[0]));
  }

  /** Text that a chart shows as it is: its markup is taken away, its length is bounded. */
  function plain(text, most = 14) {
    const short = text.length > most ? `${text.slice(0, most - 1)}…` : text;
    return short.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("\n", "");
  }

  const signed = (value, digits = 2) =>
    Number.isNaN(value) || value == null ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;

  /** The colour scale of some z rows: their 98th percentile, the first position left out. */
  function reachOf(...rows) {
    const sizes = rows.flatMap((row) => (row ? Array.from(row.slice(1), Math.abs) : [])).filter((v) => !Number.isNaN(v));
    sizes.sort((a, b) => a - b);
    return Math.max(LEAST_REACH, sizes[Math.floor(0.98 * (sizes.length - 1))] ?? 0);
  }

  /** Mean over the last tokens of a row, prompt and response apart, as the analyses smooth. */
  function smoothed(row, start) {
    return Array.from(row, (_, t) => {
      const from = Math.max(t < start ? 1 : start, t - SMOOTHED + 1);
      const window = Array.from(row.slice(from, t + 1));
      return t === 0 ? NaN : window.reduce((sum, z) => sum + z, 0) / window.length;
    });
  }

  function tokenTicks(prompt, most) {
    const every = Math.ceil(prompt.n / most);
    const places = prompt.texts.map((_, t) => t).filter((t) => t % every === 0);
    return { tickvals: places, ticktext: places.map((t) => plain(prompt.texts[t])), tickangle: -60, tickfont: { size: 10 } };
  }

  const ticksThatFit = (id, pixels = 14) => Math.max(8, Math.floor($(id).clientWidth / pixels));

  function checkpointTicks() {
    const posts = checkpoints.map((name, c) => [name, c]).filter(([name]) => !name.startsWith("resid_mid"));
    const every = Math.ceil(posts.length / 11);
    const shown = posts.filter((_, place) => place % every === 0);
    return { tickvals: shown.map(([, c]) => c), ticktext: shown.map(([name]) => name), tickfont: { size: 10 } };
  }

  const matrixOf = (prompt, trait) =>
    checkpoints.map((_, c) => Array.from(prompt.z(trait, c), (z, t) => (t === 0 || Number.isNaN(z) ? null : z)));

  // ---- tokens ---------------------------------------------------------------------------------------------------

  function showTokens(container, prompt) {
    container.replaceChildren($(`tokens-${prompt.number}`).content.cloneNode(true));
    const spans = Array.from(container.children);
    spans.forEach((span) => { if (span.textContent === "") span.textContent = "∅"; });
    return spans;
  }

  function paintSigned(spans, values, reach) {
    spans.forEach((span, t) => {
      const z = values ? values[t] : NaN;
      const shown = !Number.isNaN(z) && t > 0;
      span.classList.toggle("p", shown && z >= LEAST_UNDERLINED);
      span.classList.toggle("n", shown && z <= -LEAST_UNDERLINED);
      span.style.setProperty("--a", shown ? Math.min(1, Math.abs(z) / reach).toFixed(2) : "0");
      span.title = shown ? `${signed(z)} z` : "";
    });
  }

  /** Pointer and arrow keys on tokens: onMove(position) for what is only looked at, onPick(position) for a choice. */
  function listen(container, current, { onMove = () => {}, onPick, onVertical = () => {} }) {
    const positionOf = (event) => Array.prototype.indexOf.call(container.children, event.target.closest("span"));
    container.addEventListener("mouseover", (event) => { const t = positionOf(event); if (t >= 0) onMove(t); });
    container.addEventListener("mouseleave", () => onMove(current()));
    container.addEventListener("click", (event) => { const t = positionOf(event); if (t >= 0) onPick(t); });
    container.addEventListener("keydown", (event) => {
      const last = container.children.length - 1;
      const to = { ArrowRight: current() + 1, ArrowLeft: current() - 1, Home: 0, End: last }[event.key];
      if (to !== undefined) { event.preventDefault(); onPick(Math.max(0, Math.min(last, to))); }
      const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (by !== undefined) { event.preventDefault(); onVertical(by); }
    });
  }

  function markCurrent(spans, position) {
    spans.forEach((span, t) => span.classList.toggle("here", t === position));
    spans[position]?.scrollIntoView({ block: "nearest" });
  }

  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
    select.value = String(chosen);
  }

  const titled = (prompt) => `${prompt.labels[0]}: ${prompt.prompt.replaceAll("\n", " ").slice(0, 70)}`;

  // ---- each prompt ----------------------------------------------------------------------------------------------

  let spans = [];

  function showTable() {
    const head = document.createElement("tr");
    const cells = ["prompt", "what was asked", "response", ...traits.map((trait) => trait.name.replaceAll("_", " "))];
    cells.forEach((text, n) => {
      const cell = document.createElement("th");
      cell.textContent = text;
      if (n === 2) cell.className = "response";
      if (n > 2) cell.className = "number-head";
      head.append(cell);
    });
    $("table").tHead.replaceChildren(head);
    $("table").tBodies[0].replaceChildren(...data.table.map(tableRow));
  }

  function tableRow(row) {
    const line = document.createElement("tr");
    line.dataset.generation = row.generation ?? "";
    line.dataset.words = `${row.label} ${row.prompt} ${row.response}`.toLowerCase();
    const name = line.insertCell();
    if (row.generation) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "pick";
      button.textContent = row.label;
      name.append(button);
      line.addEventListener("click", () => choosePrompt(byGeneration.get(row.generation).number));
    } else {
      name.textContent = row.label;
    }
    for (const [text, kind] of [[row.prompt, "text"], [row.status === "ok" ? row.response : row.status.replace("_", " "), "text response"]]) {
      const cell = line.insertCell();
      cell.className = kind;
      cell.textContent = text;
      cell.title = text.slice(0, 500);
    }
    for (const trait of traits) {
      const cell = line.insertCell();
      const z = row.z[trait.name];
      cell.className = "z";
      cell.textContent = signed(z);
      if (z !== undefined) {
        const rgb = z > 0 ? "--plus-rgb" : "--minus-rgb";
        cell.style.background = `rgba(var(${rgb}), ${Math.min(0.8, Math.abs(z) / 4).toFixed(2)})`;
      }
    }
    return line;
  }

  function filterTable() {
    const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const line of $("table").tBodies[0].rows) line.hidden = !words.every((word) => line.dataset.words.includes(word));
  }

  function choosePrompt(number) {
    state.prompt = (number + held.length) % held.length;
    const prompt = held[state.prompt];
    state.token = Math.min(prompt.start, prompt.n - 1);
    return showPrompt();
  }

  async function showPrompt() {
    const prompt = await held[state.prompt].load();
    if (prompt.number !== state.prompt) return;
    $("prompt-title").textContent = titled(prompt);
    for (const line of $("table").tBodies[0].rows) line.classList.toggle("here", line.dataset.generation === prompt.generation);
    spans = showTokens($("tokens"), prompt);
    showCheckpoints(prompt);
    showTrait();
  }

  function showCheckpoints(prompt) {
    const { readout } = traits[state.trait];
    if (!prompt.layers) state.checkpoint = readout;
    const options = checkpoints.map((name, c) => [c, c === readout ? `${name} (R)` : name]);
    fill($("checkpoint"), prompt.layers ? options.reverse() : [options[readout]], state.checkpoint);
  }

  function showTrait() {
    const prompt = held[state.prompt];
    const trait = traits[state.trait];
    const values = prompt.z(state.trait, state.checkpoint);
    const reach = reachOf(values);
    paintSigned(spans, values, reach);
    const settled = prompt.commitments[trait.name]?.[0];
    spans.forEach((span, t) => span.classList.toggle("settled", t === settled));
    $("legend-text").textContent =
      `−${reach.toFixed(1)} ${trait.poles[1]} (dotted) … +${reach.toFixed(1)} ${trait.poles[0]} (underlined); z at ` +
      `${checkpoints[state.checkpoint]}; italic: the prompt${settled === undefined ? "" : "; ◆ settles here"}`;
    chooseToken(state.token);
    drawHeatmap();
    drawTrajectory();
    document.querySelectorAll(".trait-name").forEach((element) => { element.textContent = trait.name; });
  }

  function chooseToken(position) {
    state.token = position;
    markCurrent(spans, position);
    read(position);
    if ($("heatmap").data) Plotly.relayout($("heatmap"), { shapes: heatmapShapes() });
  }

  function read(position) {
    const prompt = held[state.prompt];
    const trait = traits[state.trait];
    const z = prompt.z(state.trait, state.checkpoint)[position];
    const score = z * trait.std[state.checkpoint] + trait.mean[state.checkpoint];
    const nats = prompt.nats[position];
    const bold = document.createElement("b");
    bold.textContent = JSON.stringify(prompt.texts[position]).slice(1, -1).slice(0, 80);
    const chance = Number.isNaN(nats) ? "" : ` · log-probability ${signed(nats)} (${(100 * Math.exp(nats)).toFixed(1)} %)`;
    const where = `${position < prompt.start ? "prompt" : "response"}, position ${position}`;
    $("reading").replaceChildren(
      bold, ` · ${trait.name} ${signed(z)} z at ${checkpoints[state.checkpoint]} (score ${signed(score, 3)})${chance} · ${where}`,
    );
    Object.assign($("reading").dataset, { position, z, checkpoint: checkpoints[state.checkpoint], logprob: nats, trait: trait.name });
  }

  function heatmapShapes() {
    const { readout } = traits[state.trait];
    const across = (y, dash) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: ink("--ink"), width: 1, dash } });
    const down = (x, dash) => ({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { color: ink("--ink"), width: 1, dash } });
    return [across(readout, "dash"), across(state.checkpoint, "dot"), down(state.token, "dot"), down(held[state.prompt].start - 0.5, "solid")];
  }

  function drawHeatmap() {
    const prompt = held[state.prompt];
    const trait = traits[state.trait];
    $("heatmap-caption").textContent = prompt.layers
      ? `${trait.name}: every layer at every token. Dashed: the readout ${checkpoints[trait.readout]}; solid: where the response begins; the first token is left blank, its norm is of another order. Click to read a place.`
      : `The layers of this prompt are not held here: traitscope report --select '${prompt.labels[0]}'`;
    $("heatmap").hidden = !prompt.layers;
    if (!prompt.layers) return;
    const rows = matrixOf(prompt, state.trait);
    const reach = reachOf(...rows);
    draw("heatmap", [{
      type: "heatmap", z: rows, zmin: -reach, zmax: reach, colorscale: diverging(), colorbar: { title: { text: "z" }, thickness: 10, len: 0.9 },
      customdata: rows.map((_, c) => prompt.texts.map((text) => [checkpoints[c], plain(text, 30)])),
      hovertemplate: "%{customdata[1]}<br>%{customdata[0]}: z %{z:+.2f}<extra></extra>",
    }], { xaxis: { ...tokenTicks(prompt, ticksThatFit("heatmap")), showgrid: false }, yaxis: { ...checkpointTicks(), showgrid: false }, shapes: heatmapShapes(), margin: { l: 80, r: 10, t: 10, b: 70 } },
    (point) => { state.checkpoint = point.y; $("checkpoint").value = String(point.y); state.token = point.x; showTrait(); });
  }

  function mostVisible(prompt) {
    const sizes = traits.map((_, k) => Math.max(...smoothed(prompt.z(k, traits[k].readout), prompt.start).slice(prompt.start).map(Math.abs).filter((z) => !Number.isNaN(z)), 0));
    const order = traits.map((_, k) => k).sort((a, b) => sizes[b] - sizes[a]);
    return new Set([state.trait, ...order.slice(0, 6)]);
  }

  function drawTrajectory() {
    const prompt = held[state.prompt];
    const shown = mostVisible(prompt);
    const positions = prompt.texts.map((_, t) => t);
    const names = prompt.texts.map((text) => plain(text, 30));
    const raw = prompt.z(state.trait, traits[state.trait].readout);
    const traces = [{
      x: positions, y: Array.from(raw, (z, t) => (t ? z : NaN)), mode: "lines", line: { ...lineOf(state.trait), width: 1 }, opacity: 0.55,
      showlegend: false, customdata: names, hovertemplate: "%{customdata}: z %{y:+.2f}<extra></extra>",
    }];
    traits.forEach((trait, k) => {
      const smooth = smoothed(prompt.z(k, trait.readout), prompt.start);
      if (smooth.every(Number.isNaN)) return;
      const visible = shown.has(k) ? true : "legendonly";
      traces.push({ x: positions, y: smooth, mode: "lines", name: trait.name, legendgroup: trait.name, visible, line: { ...lineOf(k), width: k === state.trait ? 3.5 : 2 }, customdata: names, hovertemplate: `${trait.name}, %{customdata}: z %{y:+.2f}<extra></extra>` });
      const point = prompt.commitments[trait.name];
      if (point) traces.push(settling(trait, k, point, smooth, visible));
    });
    draw("trajectory", traces, {
      xaxis: { ...tokenTicks(prompt, ticksThatFit("trajectory")), showgrid: false }, yaxis: { title: { text: "z" } }, margin: { l: 50, r: 10, t: 10, b: 70 },
      shapes: [
        { type: "rect", xref: "paper", x0: 0, x1: 1, y0: -1, y1: 1, fillcolor: ink("--quiet"), opacity: 0.12, line: { width: 0 }, layer: "below" },
        { type: "line", yref: "paper", y0: 0, y1: 1, x0: prompt.start - 0.5, x1: prompt.start - 0.5, line: { color: ink("--ink"), width: 1 } },
      ],
    }, (point) => chooseToken(point.x));
  }

  function settling(trait, k, [position, low, high], smooth, visible) {
    const error = low === null || high === null ? undefined : { type: "data", symmetric: false, array: [high - position], arrayminus: [position - low], thickness: 1.5 };
    return { x: [position], y: [smooth[position]], error_x: error, mode: "markers", marker: { symbol: "diamond", size: 11, color: lineOf(k).color, line: { color: ink("--paper"), width: 1 } }, showlegend: false, legendgroup: trait.name, visible, hovertemplate: `${trait.name} settles at position ${position}<extra></extra>` };
  }

  function startPrompts() {
    fill($("trait"), traits.map((trait, k) => [k, trait.name]), state.trait);
    showTable();
    $("trait").addEventListener("change", (event) => {
      state.trait = Number(event.target.value);
      state.checkpoint = traits[state.trait].readout;
      showCheckpoints(held[state.prompt]);
      showTrait();
      redrawLater();
    });
    $("checkpoint").addEventListener("change", (event) => { state.checkpoint = Number(event.target.value); showTrait(); });
    $("find").addEventListener("input", filterTable);
    $("previous").addEventListener("click", () => choosePrompt(state.prompt - 1));
    $("next").addEventListener("click", () => choosePrompt(state.prompt + 1));
    listen($("tokens"), () => state.token, {
      onMove: read, onPick: chooseToken,
      onVertical: (by) => {
        if (!held[state.prompt].layers) return;
        state.checkpoint = Math.max(0, Math.min(checkpoints.length - 1, state.checkpoint + by));
        $("checkpoint").value = String(state.checkpoint);
        showTrait();
      },
    });
    return choosePrompt(0);
  }

  // ---- compare --------------------------------------------------------------------------------------------------

  function drawExperiments() {
    const name = traits[state.trait].name;
    const groups = data.experiments.filter((group) => group.points[name].length);
    $("experiments").style.height = `${90 + 34 * groups.length}px`;
    const dots = { x: [], y: [], customdata: [], mode: "markers", marker: { size: 9, color: ink("--accent"), opacity: 0.55 }, showlegend: false, hovertemplate: "%{customdata[0]}: z %{x:+.2f}<extra></extra>" };
    const means = { x: [], y: [], error_x: { type: "data", symmetric: false, array: [], arrayminus: [], color: ink("--ink"), thickness: 2 }, mode: "markers", marker: { symbol: "diamond", size: 11, color: ink("--ink") }, showlegend: false, hovertemplate: "mean z %{x:+.2f}<extra></extra>" };
    groups.forEach((group, row) => {
      for (const point of group.points[name]) { dots.x.push(point.z); dots.y.push(row); dots.customdata.push([plain(point.label, 60), point.generation]); }
      const { mean, low, high } = group.mean[name];
      means.x.push(mean); means.y.push(row);
      means.error_x.array.push(high === null ? 0 : high - mean); means.error_x.arrayminus.push(low === null ? 0 : mean - low);
    });
    draw("experiments", [dots, means], {
      xaxis: { title: { text: `mean z, ${name}` }, zeroline: true }, margin: { l: 120, r: 12, t: 10, b: 45 },
      yaxis: { tickvals: groups.map((_, row) => row), ticktext: groups.map((group) => plain(group.name, 28)), autorange: "reversed", zeroline: false },
    }, (point) => {
      const prompt = point.customdata && byGeneration.get(point.customdata[1]);
      if (prompt) { choosePrompt(prompt.number); $("prompts").scrollIntoView(); }
    });
  }

  /** The two held prompts of the first experiment that differ most in the first trait. */
  function farthestPair() {
    const scored = data.table.filter((row) => row.generation && row.z[traits[0]?.name] !== undefined);
    const experiment = scored[0]?.label.split("/")[0];
    const own = scored.filter((row) => row.label.split("/")[0] === experiment).sort((a, b) => a.z[traits[0].name] - b.z[traits[0].name]);
    return own.length < 2 ? [0, Math.min(1, held.length - 1)] : [own[0], own.at(-1)].map((row) => byGeneration.get(row.generation).number);
  }

  async function drawPair() {
    const pair = await Promise.all(["left", "right"].map((side) => held[Number($(side).value)].load()));
    const { readout } = traits[state.trait];
    const rows = pair.map((prompt) => prompt.z(state.trait, readout));
    const reach = reachOf(...rows);
    $("pair-scale").textContent = reach.toFixed(1);
    ["left", "right"].forEach((side, which) => {
      const marked = showTokens($(`${side}-tokens`), pair[which]);
      paintSigned(marked, rows[which], reach);
    });
    const maps = pair.map((prompt) => (prompt.layers ? matrixOf(prompt, state.trait) : null));
    const mapReach = reachOf(...maps.flatMap((map) => map ?? []));
    ["left-map", "right-map"].forEach((id, which) => {
      $(id).hidden = !maps[which];
      if (!maps[which]) return;
      draw(id, [{ type: "heatmap", z: maps[which], zmin: -mapReach, zmax: mapReach, colorscale: diverging(), showscale: which === 1, colorbar: { thickness: 10 }, customdata: maps[which].map((_, c) => pair[which].texts.map((text) => [checkpoints[c], plain(text, 30)])), hovertemplate: "%{customdata[1]}<br>%{customdata[0]}: z %{z:+.2f}<extra></extra>" }],
        { xaxis: { ...tokenTicks(pair[which], ticksThatFit(id)), showgrid: false }, yaxis: { ...checkpointTicks(), showgrid: false }, margin: { l: 80, r: 10, t: 10, b: 70 } });
    });
    draw("pair-lines", pair.map((prompt, which) => ({
      x: Array.from({ length: prompt.n - prompt.start }, (_, t) => t), y: smoothed(rows[which], prompt.start).slice(prompt.start), mode: "lines", name: plain(titled(prompt), 44),
      line: { color: colourOf(which), width: 3, dash: which ? "dash" : "solid" }, customdata: prompt.texts.slice(prompt.start).map((text) => plain(text, 30)), hovertemplate: "%{customdata}: z %{y:+.2f}<extra></extra>",
    })), { xaxis: { title: { text: "token of the response" } }, yaxis: { title: { text: "z" } } });
  }

  function startCompare() {
    const [low, high] = farthestPair();
    fill($("left"), held.map((prompt) => [prompt.number, titled(prompt)]), low);
    fill($("right"), held.map((prompt) => [prompt.number, titled(prompt)]), high);
    for (const side of ["left", "right"]) {
      $(side).addEventListener("change", drawPair);
      const tokens = $(`${side}-tokens`);
      listen(tokens, () => Number(tokens.dataset.position ?? 0), { onPick: (t) => { tokens.dataset.position = t; markCurrent(Array.from(tokens.children), t); } });
    }
    drawExperiments();
    return drawPair();
  }

  // ---- open layer -----------------------------------------------------------------------------------------------

  const opened = { prompt: 0, layer: "", trait: 0, head: 0, token: 0, arrays: null, spans: [] };

  async function openArrays(prompt, layer) {
    const described = prompt.open[layer];
    const read = async (name, kind, step) => (described[name] ? (step ? unpackSteps(described[name], step) : unpack(described[name], kind)) : null);
    return {
      ...described, n: prompt.n,
      pattern: await read("pattern", null, steps.weight), towards: await read("towards", null, steps.write), scale: await read("scale", Float32Array),
      neuron: await read("neuron", Int32Array), neuronWrite: await read("neuron_write", null, steps.write), activation: await read("neuron_activation", Float32Array),
      most: described.neurons,
    };
  }

  const weightsOf = ({ pattern, n }, head, position) => pattern.subarray((head * n + position) * n, (head * n + position) * n + n);

  /** What a head adds for each token that it reads, in z, or null where this is not held. */
  function addedBy(arrays, trait, head, position) {
    if (!arrays.towards) return null;
    const weights = weightsOf(arrays, head, position);
    const from = (trait * arrays.heads + head) * arrays.n;
    return Array.from(weights, (weight, s) => weight * arrays.towards[from + s] * arrays.scale[position]);
  }

  /** Whether a layer's attention or MLP stands before the trait's readout; else it has no part in the score. */
  function isBeforeReadout(kind, trait) {
    const mid = checkpoints.indexOf(`resid_mid.${opened.layer}`);
    const post = checkpoints.indexOf(`resid_post.${opened.layer}`);
    return (kind === "attention" && mid >= 0 ? mid : post) <= traits[trait].readout;
  }

  async function showOpenPrompt() {
    const prompt = await held[opened.prompt].load();
    opened.token = Math.min(prompt.n - 1, prompt.start + Math.floor((prompt.n - prompt.start) / 2));
    const layers = Object.keys(prompt.open);
    fill($("open-layer"), layers.map((layer) => [layer, layer]), layers.includes(opened.layer) ? opened.layer : layers[0]);
    opened.layer = $("open-layer").value;
    opened.head = null;
    opened.spans = showTokens($("open-tokens"), prompt);
    return showOpenLayer();
  }

  async function showOpenLayer() {
    opened.arrays = await openArrays(held[opened.prompt], opened.layer);
    opened.head ??= strongestHead();
    drawHeads();
    showHead();
  }

  /** What each head of the layer wrote at the chosen token, in z, or null where this is not known. */
  function headWrites() {
    const { arrays } = opened;
    if (!arrays.towards || !arrays.pattern || !isBeforeReadout("attention", opened.trait)) return null;
    const sum = (head) => addedBy(arrays, opened.trait, head, opened.token).reduce((total, z) => total + z, 0);
    return Array.from({ length: arrays.heads }, (_, head) => sum(head));
  }

  function strongestHead() {
    const sizes = (headWrites() ?? [0]).map(Math.abs);
    return sizes.indexOf(Math.max(...sizes));
  }

  function drawHeads() {
    const { arrays } = opened;
    $("heads").replaceChildren(...Array.from({ length: arrays.heads ?? 0 }, (_, head) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("role", "radio");
      button.append(miniature(arrays, head), `head ${head}`);
      button.addEventListener("click", () => { opened.head = head; showHead(); });
      return button;
    }));
  }

  function miniature({ pattern, n }, head) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = n;
    const context = canvas.getContext("2d");
    const image = context.createImageData(n, n);
    const [red, green, blue] = ink("--plus-rgb").split(",").map(Number);
    for (let place = 0; place < n * n; place++) {
      image.data.set([red, green, blue, 255 * Math.sqrt(Math.min(1, pattern[head * n * n + place]))], 4 * place);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function showHead() {
    Array.from($("heads").children).forEach((button, head) => button.setAttribute("aria-checked", String(head === opened.head)));
    drawPattern();
    showOpenToken();
  }

  function drawPattern() {
    const { arrays } = opened;
    const prompt = held[opened.prompt];
    $("pattern").hidden = !arrays.pattern;
    $("pattern-caption").textContent = arrays.pattern ? `Layer ${opened.layer}, head ${opened.head}: attention from each token (row) to those before it. The first token's column is often a sink; the colour scale leaves it out.` : "The suite kept no attention pattern of this layer.";
    if (!arrays.pattern) return;
    const rows = prompt.texts.map((_, t) => Array.from(weightsOf(arrays, opened.head, t), (weight, s) => (s > t ? null : weight)));
    const most = Math.max(0.05, ...rows.flatMap((row, t) => row.slice(1, t + 1)));
    const [across, down] = [tokenTicks(prompt, ticksThatFit("pattern")), tokenTicks(prompt, 28)];
    draw("pattern", [{ type: "heatmap", z: rows, zmin: 0, zmax: most, colorscale: rising(), colorbar: { thickness: 10 }, customdata: rows.map((_, t) => prompt.texts.map((text) => [plain(prompt.texts[t], 30), plain(text, 30)])), hovertemplate: "%{customdata[0]} reads %{customdata[1]}: %{z:.3f}<extra></extra>" }],
      { xaxis: { ...across, showgrid: false }, yaxis: { ...down, tickangle: 0, autorange: "reversed", showgrid: false }, margin: { l: 80, r: 10, t: 10, b: 70 } },
      (point) => { opened.token = point.y; showOpenToken(); });
  }

  function showOpenToken() {
    const { arrays, token } = opened;
    const prompt = held[opened.prompt];
    const weights = arrays.pattern ? weightsOf(arrays, opened.head, token) : null;
    const most = weights ? Math.max(1e-6, ...weights.slice(1)) : 1;
    opened.spans.forEach((span, s) => {
      span.classList.toggle("w", weights !== null && s <= token);
      span.style.setProperty("--a", weights && s <= token ? Math.min(1, weights[s] / most).toFixed(2) : "0");
      span.title = weights && s <= token ? `attention ${weights[s].toFixed(3)}` : "";
    });
    markCurrent(opened.spans, token);
    $("open-token").textContent = `${prompt.texts[token]} (position ${token})`;
    drawBlocks();
    drawHeadWrites();
    listSources(weights);
    listNeurons();
  }

  function drawBlocks() {
    const prompt = held[opened.prompt];
    const found = prompt.writesAt(opened.trait, opened.token);
    const trait = traits[opened.trait];
    $("blocks-caption").textContent = found.length ? `Which blocks wrote ${trait.name} at this token, up to ${checkpoints[trait.readout]}, in z. Outlined: the open layer.` : `The writes of this prompt are not held here: traitscope report --select '${prompt.labels[0]}'`;
    $("blocks").hidden = !found.length;
    if (!found.length) return;
    const named = found.map(([c]) => blockName(checkpoints[c]));
    draw("blocks", [{ type: "bar", x: named, y: found.map(([, z]) => z), marker: { color: found.map(([, z]) => ink(z > 0 ? "--plus" : "--minus")), line: { color: ink("--ink"), width: found.map(([c]) => (checkpoints[c].endsWith(`.${opened.layer}`) ? 2 : 0)) } }, hovertemplate: "%{x}: %{y:+.3f} z<extra></extra>" }],
      { xaxis: { tickangle: -60, tickfont: { size: 9 } }, yaxis: { title: { text: "write, z" } }, margin: { l: 50, r: 10, t: 10, b: 60 } });
  }

  function blockName(checkpoint) {
    const [site, layer] = checkpoint.split(".");
    if (site === "resid_mid") return `${layer} attention`;
    return checkpoints.includes(`resid_mid.${layer}`) ? `${layer} MLP` : `block ${layer}`;
  }

  function drawHeadWrites() {
    const trait = traits[opened.trait];
    const sums = headWrites();
    $("head-writes").hidden = !sums;
    $("head-writes-caption").textContent = sums ? `Which heads of layer ${opened.layer} wrote ${trait.name} at this token, in z.` : isBeforeReadout("attention", opened.trait) ? "What this layer's heads wrote was not kept by the run." : `Layer ${opened.layer} stands behind the readout of ${trait.name} (${checkpoints[trait.readout]}): its heads have no part in the score.`;
    if (!sums) return;
    $("head-writes").dataset.sums = JSON.stringify(sums);
    draw("head-writes", [{ type: "bar", x: sums.map((_, head) => `head ${head}`), y: sums, marker: { color: sums.map((z) => ink(z > 0 ? "--plus" : "--minus")), line: { color: ink("--ink"), width: sums.map((_, head) => (head === opened.head ? 2 : 0)) } }, hovertemplate: "%{x}: %{y:+.3f} z<extra></extra>" }],
      { yaxis: { title: { text: "write, z" } } }, (point) => { opened.head = point.pointNumber; showHead(); });
  }

  function listRows(id, rows, empty) {
    const body = $(id).tBodies[0];
    body.replaceChildren(...(rows.length ? rows : [[empty, "", ""]]).map((cells) => {
      const line = document.createElement("tr");
      cells.forEach((text, n) => { const cell = line.insertCell(); cell.textContent = text; if (n) cell.className = "number"; });
      return line;
    }));
  }

  function listSources(weights) {
    if (!weights) { listRows("sources", [], "not kept by the suite"); return; }
    const added = isBeforeReadout("attention", opened.trait) ? addedBy(opened.arrays, opened.trait, opened.head, opened.token) : null;
    const size = (s) => Math.abs(added ? added[s] : weights[s]);
    const order = Array.from({ length: opened.token + 1 }, (_, s) => s).sort((a, b) => size(b) - size(a)).slice(0, 8);
    const prompt = held[opened.prompt];
    listRows("sources", order.map((s) => [`${prompt.texts[s]} (${s})`, weights[s].toFixed(3), added ? signed(added[s], 3) : "–"]), "nothing");
  }

  function listNeurons() {
    const { arrays } = opened;
    if (!arrays.neuron || !isBeforeReadout("mlp", opened.trait)) { listRows("neurons", [], arrays.neuron ? "behind the readout" : "not kept by the run"); return; }
    const from = (opened.trait * arrays.n + opened.token) * arrays.most;
    listRows("neurons", Array.from({ length: arrays.most }, (_, place) => [
      String(arrays.neuron[from + place]), signed(arrays.activation[from + place]), signed(arrays.neuronWrite[from + place], 3),
    ]), "none");
  }

  function startOpen() {
    const withLayers = held.filter((prompt) => Object.keys(prompt.open).length);
    opened.prompt = withLayers[0].number;
    opened.trait = Math.max(0, traits.findIndex((trait) => Object.keys(withLayers[0].open).includes(checkpoints[trait.readout].split(".")[1])));
    fill($("open-prompt"), withLayers.map((prompt) => [prompt.number, titled(prompt)]), opened.prompt);
    fill($("open-trait"), traits.map((trait, k) => [k, trait.name]), opened.trait);
    $("open-prompt").addEventListener("change", (event) => { opened.prompt = Number(event.target.value); showOpenPrompt(); });
    $("open-layer").addEventListener("change", (event) => { opened.layer = event.target.value; showOpenLayer(); });
    $("open-trait").addEventListener("change", (event) => { opened.trait = Number(event.target.value); showOpenToken(); });
    const choose = (token) => { opened.token = token; showOpenToken(); };
    listen($("open-tokens"), () => opened.token, { onPick: choose });
    $("heads").addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      opened.head = (opened.head + by + opened.arrays.heads) % opened.arrays.heads;
      showHead();
      $("heads").children[opened.head].focus();
    });
    return showOpenPrompt();
  }

  // ---- traits ---------------------------------------------------------------------------------------------------

  function drawCosines() {
    const { cosines, deviation, marked_beyond: beyond } = data.cosines;
    if (!cosines.length) return;
    $("random-cosine").textContent = `Two random directions: 0 ± ${deviation.toFixed(3)}; beyond ±${beyond.toFixed(3)} is more than three deviations.`;
    const names = traits.map((trait) => trait.name);
    $("cosines").style.height = `${150 + Math.max(40, 30 * names.length)}px`;
    draw("cosines", [{
      type: "heatmap", z: cosines, x: names, y: names, zmin: -1, zmax: 1, colorscale: diverging(), colorbar: { thickness: 10 },
      text: cosines.map((row) => row.map((value) => (value === null ? "–" : value.toFixed(2)))), texttemplate: names.length <= 10 || innerWidth > 900 ? "%{text}" : undefined,
      hovertemplate: "%{y} · %{x}: %{z:+.3f}<extra></extra>",
    }], { xaxis: { tickangle: -40, tickfont: { size: 10 } }, yaxis: { autorange: "reversed", tickfont: { size: 10 } }, margin: { l: 60, r: 10, t: 10, b: 60 } });
  }

  // ---- the page -------------------------------------------------------------------------------------------------

  const waiting = new Map();

  /** Draw a section when it comes near the window, or a while after the page opened, so that it can be printed. */
  function whenNear(id, start) {
    if (!$(id)) return;
    const watcher = new IntersectionObserver((seen) => { if (seen.some((entry) => entry.isIntersecting)) begin(id); }, { rootMargin: "800px" });
    waiting.set(id, { start, watcher });
    watcher.observe($(id));
  }

  function begin(id) {
    const { start, watcher } = waiting.get(id) ?? {};
    if (!start) return undefined;
    waiting.delete(id);
    watcher.disconnect();
    return Promise.resolve(start()).then(() => { $(id).dataset.drawn = "yes"; });
  }

  const isDrawn = (id) => $(id)?.dataset.drawn === "yes";

  function redrawLater() {
    if (isDrawn("compare")) { drawExperiments(); drawPair(); }
  }

  function redraw() {
    if (held.length) showTrait();
    redrawLater();
    if (isDrawn("open")) { drawHeads(); showHead(); }
    if (isDrawn("traits")) drawCosines();
  }

  // Paper is light whatever the screen is.
  addEventListener("beforeprint", () => { document.documentElement.dataset.paper = "yes"; redraw(); });
  addEventListener("afterprint", () => { delete document.documentElement.dataset.paper; redraw(); });
  dark.addEventListener("change", redraw);
  if (held.length) {
    whenNear("compare", startCompare);
    whenNear("open", startOpen);
  }
  whenNear("traits", drawCosines);
  Promise.resolve(held.length ? startPrompts() : null).then(() => {
    document.body.dataset.ready = "yes";
    setTimeout(() => [...waiting.keys()].forEach(begin), 2000);
  });
})();
