"use strict";
// Each prompt: the table, the tokens, the map of layers, the trajectories.

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
    line.addEventListener("click", () => {
      choosePrompt(byGeneration.get(row.generation).number);
      $("tokens").focus({ preventScroll: true });
    });
  } else {
    name.textContent = row.label;
  }
  for (const [text, kind] of [
    [row.prompt, "text"],
    [row.status === "ok" ? row.response : row.status.replace("_", " "), "text response"],
  ]) {
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
  for (const line of $("table").tBodies[0].rows)
    line.hidden = !words.every((word) => line.dataset.words.includes(word));
  $("nothing-found").hidden = Array.from($("table").tBodies[0].rows).some((line) => !line.hidden);
}

function choosePrompt(number) {
  state.prompt = (number + held.length) % held.length;
  const prompt = held[state.prompt];
  state.token = Math.min(prompt.start, prompt.n - 1);
  return showPrompt();
}

function showRow(prompt) {
  const lines = Array.from($("table").tBodies[0].rows);
  lines.forEach((line) => line.classList.toggle("here", line.dataset.generation === prompt.generation));
  const own = lines.find((line) => line.classList.contains("here"));
  if (own) scrollWithin($("table").parentElement, own);
}

async function showPrompt() {
  const prompt = await held[state.prompt].load();
  if (prompt.number !== state.prompt) return;
  $("prompt-title").textContent = titled(prompt);
  showRow(prompt);
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
  if (!prompt.loaded) return; // showPrompt comes back here when it is
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
  document.querySelectorAll(".trait-name").forEach((element) => {
    element.textContent = trait.name;
  });
}

function chooseToken(position) {
  state.token = position;
  markCurrent(spans, position);
  read(position, true);
  if ($("heatmap").data) Plotly.relayout($("heatmap"), { shapes: heatmapShapes() });
}

/** Say what is known of a token; spoken aloud only where it was chosen. */
function read(position, aloud = false) {
  const prompt = held[state.prompt];
  if (!prompt.loaded) return;
  $("reading").ariaLive = aloud ? "polite" : "off";
  const trait = traits[state.trait];
  const z = prompt.z(state.trait, state.checkpoint)[position];
  const score = z * trait.std[state.checkpoint] + trait.mean[state.checkpoint];
  const nats = prompt.nats[position];
  const bold = document.createElement("b");
  bold.textContent = JSON.stringify(prompt.texts[position]).slice(1, -1).slice(0, 80);
  const chance = Number.isNaN(nats)
    ? ""
    : ` · log-probability ${signed(nats)} (${(100 * Math.exp(nats)).toFixed(1)} %)`;
  const where = `${position < prompt.start ? "prompt" : "response"}, position ${position}`;
  $("reading").replaceChildren(
    bold,
    ` · ${trait.name} ${signed(z)} z at ${checkpoints[state.checkpoint]} (score ${signed(score, 1)})${chance} · ${where}`,
  );
  Object.assign($("reading").dataset, {
    position,
    z,
    checkpoint: checkpoints[state.checkpoint],
    logprob: nats,
    trait: trait.name,
  });
}

function heatmapShapes() {
  const { readout } = traits[state.trait];
  const across = (y, dash) => ({
    type: "line",
    xref: "paper",
    x0: 0,
    x1: 1,
    y0: y,
    y1: y,
    line: { color: ink("--ink"), width: 1, dash },
  });
  const down = (x, dash) => ({
    type: "line",
    yref: "paper",
    y0: 0,
    y1: 1,
    x0: x,
    x1: x,
    line: { color: ink("--ink"), width: 1, dash },
  });
  return [
    across(readout, "dash"),
    across(state.checkpoint, "dot"),
    down(state.token, "dot"),
    down(held[state.prompt].start - 0.5, "solid"),
  ];
}

function drawHeatmap() {
  const prompt = held[state.prompt];
  const trait = traits[state.trait];
  $("heatmap-caption").textContent = prompt.layers
    ? `${trait.name}: every layer at every token. Dashed: the readout ${checkpoints[trait.readout]}; solid: where the response begins; the first token is left blank, its norm is of another order. Click to read a place.`
    : `The layers of this prompt are not held here: ${bringing(prompt)}`;
  $("heatmap").hidden = !prompt.layers;
  if (!prompt.layers) return;
  const rows = matrixOf(prompt, state.trait);
  const reach = reachOf(...rows);
  draw(
    "heatmap",
    [
      {
        type: "heatmap",
        z: rows,
        zmin: -reach,
        zmax: reach,
        colorscale: diverging(),
        colorbar: { title: { text: "z" }, thickness: 10, len: 0.9 },
        ...namesOfCells(checkpoints, prompt.texts),
      },
    ],
    {
      xaxis: { ...tokenTicks(prompt, ticksThatFit("heatmap")), showgrid: false },
      yaxis: { ...checkpointTicks(), showgrid: false },
      shapes: heatmapShapes(),
      margin: { l: 80, r: 10, t: 10, b: 70 },
    },
    (point) => {
      state.checkpoint = point.y;
      $("checkpoint").value = String(point.y);
      state.token = point.x;
      showTrait();
    },
  );
}

function mostVisible(prompt) {
  const sizes = traits.map((_, k) =>
    Math.max(
      ...smoothed(prompt.z(k, traits[k].readout), prompt.start)
        .slice(prompt.start)
        .map(Math.abs)
        .filter((z) => !Number.isNaN(z)),
      0,
    ),
  );
  const order = traits.map((_, k) => k).sort((a, b) => sizes[b] - sizes[a]);
  return new Set([state.trait, ...order.slice(0, 6)]);
}

function drawTrajectory() {
  const prompt = held[state.prompt];
  const shown = mostVisible(prompt);
  const positions = prompt.texts.map((_, t) => t);
  const names = prompt.texts.map((text) => plain(text, 30));
  const raw = prompt.z(state.trait, traits[state.trait].readout);
  const traces = [
    {
      x: positions,
      y: Array.from(raw, (z, t) => (t ? z : NaN)),
      mode: "lines",
      line: { ...lineOf(state.trait), width: 1 },
      opacity: 0.55,
      showlegend: false,
      customdata: names,
      hovertemplate: "%{customdata}: z %{y:+.2f}<extra></extra>",
    },
  ];
  traits.forEach((trait, k) => {
    const smooth = smoothed(prompt.z(k, trait.readout), prompt.start);
    if (smooth.every(Number.isNaN)) return;
    const visible = shown.has(k) ? true : "legendonly";
    traces.push({
      x: positions,
      y: smooth,
      mode: "lines",
      name: trait.name,
      legendgroup: trait.name,
      visible,
      line: { ...lineOf(k), width: k === state.trait ? 3.5 : 2 },
      customdata: names,
      hovertemplate: `${trait.name}, %{customdata}: z %{y:+.2f}<extra></extra>`,
    });
    const point = prompt.commitments[trait.name];
    if (point) traces.push(settling(trait, k, point, smooth, visible));
  });
  draw(
    "trajectory",
    traces,
    {
      xaxis: { ...tokenTicks(prompt, ticksThatFit("trajectory")), showgrid: false },
      yaxis: { title: { text: "z" } },
      margin: { l: 50, r: 10, t: 10, b: 70 },
      shapes: [
        {
          type: "rect",
          xref: "paper",
          x0: 0,
          x1: 1,
          y0: -1,
          y1: 1,
          fillcolor: ink("--quiet"),
          opacity: 0.12,
          line: { width: 0 },
          layer: "below",
        },
        {
          type: "line",
          yref: "paper",
          y0: 0,
          y1: 1,
          x0: prompt.start - 0.5,
          x1: prompt.start - 0.5,
          line: { color: ink("--ink"), width: 1 },
        },
      ],
    },
    (point) => chooseToken(point.x),
  );
}

function settling(trait, k, [position, low, high], smooth, visible) {
  const error =
    low === null || high === null
      ? undefined
      : { type: "data", symmetric: false, array: [high - position], arrayminus: [position - low], thickness: 1.5 };
  return {
    x: [position],
    y: [smooth[position]],
    error_x: error,
    mode: "markers",
    marker: { symbol: "diamond", size: 11, color: lineOf(k).color, line: { color: ink("--paper"), width: 1 } },
    showlegend: false,
    legendgroup: trait.name,
    visible,
    hovertemplate: `${trait.name} settles at position ${position}<extra></extra>`,
  };
}

function startPrompts() {
  fill(
    $("trait"),
    traits.map((trait, k) => [k, trait.name]),
    state.trait,
  );
  showTable();
  $("trait").addEventListener("change", (event) => {
    state.trait = Number(event.target.value);
    state.checkpoint = traits[state.trait].readout;
    showCheckpoints(held[state.prompt]);
    showTrait();
    redrawLater();
  });
  $("checkpoint").addEventListener("change", (event) => {
    state.checkpoint = Number(event.target.value);
    showTrait();
  });
  $("find").addEventListener("input", filterTable);
  $("previous").addEventListener("click", () => choosePrompt(state.prompt - 1));
  $("next").addEventListener("click", () => choosePrompt(state.prompt + 1));
  listen($("tokens"), () => state.token, {
    onMove: read,
    onPick: chooseToken,
    onVertical: (by) => {
      if (!held[state.prompt].layers) return;
      state.checkpoint = Math.max(0, Math.min(checkpoints.length - 1, state.checkpoint + by));
      $("checkpoint").value = String(state.checkpoint);
      showTrait();
    },
  });
  return choosePrompt(0);
}
