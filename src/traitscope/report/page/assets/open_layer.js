"use strict";
// An open layer: what its heads read, and who wrote the trait.

const opened = { prompt: 0, layer: "", trait: 0, head: 0, token: 0, arrays: null, spans: [] };

async function openArrays(prompt, layer) {
  const described = prompt.open[layer];
  const read = async (name, kind, step) =>
    described[name] ? (step ? unpackSteps(described[name], step) : unpack(described[name], kind)) : null;
  return {
    ...described,
    n: prompt.n,
    pattern: await read("pattern", null, steps.weight),
    towards: await read("towards", null, steps.write),
    scale: await read("scale", Float32Array),
    neuron: await read("neuron", Int32Array),
    neuronWrite: await read("neuron_write", null, steps.write),
    activation: await read("neuron_activation", Float32Array),
    most: described.neurons,
  };
}

const weightsOf = ({ pattern, n }, head, position) =>
  pattern.subarray((head * n + position) * n, (head * n + position) * n + n);

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
  if (prompt.number !== opened.prompt) return; // another choice was made meanwhile
  opened.token = Math.min(prompt.n - 1, prompt.start + Math.floor((prompt.n - prompt.start) / 2));
  const layers = Object.keys(prompt.open);
  fill(
    $("open-layer"),
    layers.map((layer) => [layer, layer]),
    layers.includes(opened.layer) ? opened.layer : layers[0],
  );
  opened.layer = $("open-layer").value;
  opened.head = null;
  opened.spans = showTokens($("open-tokens"), prompt);
  return showOpenLayer();
}

async function showOpenLayer() {
  const { prompt, layer } = opened;
  const arrays = await openArrays(held[prompt], layer);
  if (prompt !== opened.prompt || layer !== opened.layer) return;
  opened.arrays = arrays;
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
  $("heads").replaceChildren(
    ...Array.from({ length: arrays.heads ?? 0 }, (_, head) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("role", "radio");
      button.append(miniature(arrays, head), `head ${head}`);
      button.addEventListener("click", () => {
        opened.head = head;
        showHead();
      });
      return button;
    }),
  );
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
  Array.from($("heads").children).forEach((button, head) => {
    button.setAttribute("aria-checked", String(head === opened.head));
    button.tabIndex = head === opened.head ? 0 : -1;
  });
  drawPattern();
  showOpenToken();
}

function drawPattern() {
  const { arrays } = opened;
  const prompt = held[opened.prompt];
  $("pattern").hidden = !arrays.pattern;
  $("pattern-caption").textContent = arrays.pattern
    ? `Layer ${opened.layer}, head ${opened.head}: attention from each token (row) to those before it. The first token's column is often a sink; the colour scale leaves it out.`
    : "The suite kept no attention pattern of this layer.";
  if (!arrays.pattern) return;
  const rows = prompt.texts.map((_, t) =>
    Array.from(weightsOf(arrays, opened.head, t), (weight, s) => (s > t ? null : weight)),
  );
  const most = rows.reduce((largest, row, t) => Math.max(largest, ...row.slice(1, t + 1)), 0.05);
  const [across, down] = [tokenTicks(prompt, ticksThatFit("pattern")), tokenTicks(prompt, 28)];
  draw(
    "pattern",
    [
      {
        type: "heatmap",
        z: rows,
        zmin: 0,
        zmax: most,
        colorscale: rising(),
        colorbar: { thickness: 10 },
        ...namesOfCells(prompt.texts, prompt.texts),
      },
    ],
    {
      xaxis: { ...across, showgrid: false },
      yaxis: { ...down, tickangle: 0, autorange: "reversed", showgrid: false },
      margin: { l: 80, r: 10, t: 10, b: 70 },
    },
    (point) => {
      opened.token = point.y;
      showOpenToken();
    },
  );
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
  $("blocks-caption").textContent = found.length
    ? `Which blocks wrote ${trait.name} at this token, up to ${checkpoints[trait.readout]}, in z; what a block usually adds is not taken off (traitscope explain does). Outlined: the open layer.`
    : prompt.layers
      ? `${trait.name} was not asked of this prompt.`
      : `The writes of this prompt are not held here: ${bringing(prompt)}`;
  $("blocks").hidden = !found.length;
  if (!found.length) return;
  const named = found.map(([c]) => blockName(checkpoints[c]));
  draw(
    "blocks",
    [
      {
        type: "bar",
        x: named,
        y: found.map(([, z]) => z),
        marker: {
          color: found.map(([, z]) => ink(z > 0 ? "--plus" : "--minus")),
          line: {
            color: ink("--ink"),
            width: found.map(([c]) => (checkpoints[c].endsWith(`.${opened.layer}`) ? 2 : 0)),
          },
        },
        hovertemplate: "%{x}: %{y:+.3f} z<extra></extra>",
      },
    ],
    {
      xaxis: { tickangle: -60, tickfont: { size: 9 } },
      yaxis: { title: { text: "write, z" } },
      margin: { l: 50, r: 10, t: 10, b: 60 },
    },
  );
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
  $("head-writes-caption").textContent = sums
    ? `Which heads of layer ${opened.layer} wrote ${trait.name} at this token, in z.`
    : isBeforeReadout("attention", opened.trait)
      ? "What this layer's heads wrote was not kept by the run."
      : `Layer ${opened.layer} stands behind the readout of ${trait.name} (${checkpoints[trait.readout]}): its heads have no part in the score.`;
  if (!sums) return;
  $("head-writes").dataset.sums = JSON.stringify(sums);
  draw(
    "head-writes",
    [
      {
        type: "bar",
        x: sums.map((_, head) => `head ${head}`),
        y: sums,
        marker: {
          color: sums.map((z) => ink(z > 0 ? "--plus" : "--minus")),
          line: { color: ink("--ink"), width: sums.map((_, head) => (head === opened.head ? 2 : 0)) },
        },
        hovertemplate: "%{x}: %{y:+.3f} z<extra></extra>",
      },
    ],
    { yaxis: { title: { text: "write, z" } } },
    (point) => {
      opened.head = point.pointNumber;
      showHead();
    },
  );
}

function listRows(id, rows, empty) {
  const body = $(id).tBodies[0];
  body.replaceChildren(
    ...(rows.length ? rows : [[empty, "", ""]]).map((cells) => {
      const line = document.createElement("tr");
      cells.forEach((text, n) => {
        const cell = line.insertCell();
        cell.textContent = text;
        if (n) cell.className = "number";
      });
      return line;
    }),
  );
}

function listSources(weights) {
  if (!weights) {
    listRows("sources", [], "not kept by the suite");
    return;
  }
  const added = isBeforeReadout("attention", opened.trait)
    ? addedBy(opened.arrays, opened.trait, opened.head, opened.token)
    : null;
  const size = (s) => Math.abs(added ? added[s] : weights[s]);
  const order = Array.from({ length: opened.token + 1 }, (_, s) => s)
    .sort((a, b) => size(b) - size(a))
    .slice(0, 8);
  const prompt = held[opened.prompt];
  listRows(
    "sources",
    order.map((s) => [`${prompt.texts[s]} (${s})`, weights[s].toFixed(3), added ? signed(added[s], 3) : "–"]),
    "nothing",
  );
}

function listNeurons() {
  const { arrays } = opened;
  if (!arrays.neuron || !isBeforeReadout("mlp", opened.trait)) {
    listRows("neurons", [], arrays.neuron ? "behind the readout" : "not kept by the run");
    return;
  }
  const from = (opened.trait * arrays.n + opened.token) * arrays.most;
  listRows(
    "neurons",
    Array.from({ length: arrays.most }, (_, place) => [
      String(arrays.neuron[from + place]),
      signed(arrays.activation[from + place]),
      signed(arrays.neuronWrite[from + place], 3),
    ]),
    "none",
  );
}

function startOpen() {
  const withLayers = held.filter((prompt) => Object.keys(prompt.open).length);
  opened.prompt = withLayers[0].number;
  opened.trait = Math.max(
    0,
    traits.findIndex((trait) => Object.keys(withLayers[0].open).includes(checkpoints[trait.readout].split(".")[1])),
  );
  fill(
    $("open-prompt"),
    withLayers.map((prompt) => [prompt.number, titled(prompt)]),
    opened.prompt,
  );
  fill(
    $("open-trait"),
    traits.map((trait, k) => [k, trait.name]),
    opened.trait,
  );
  $("open-prompt").addEventListener("change", (event) => {
    opened.prompt = Number(event.target.value);
    showOpenPrompt();
  });
  $("open-layer").addEventListener("change", (event) => {
    opened.layer = event.target.value;
    showOpenLayer();
  });
  $("open-trait").addEventListener("change", (event) => {
    opened.trait = Number(event.target.value);
    showOpenToken();
  });
  const choose = (token) => {
    opened.token = token;
    showOpenToken();
  };
  listen($("open-tokens"), () => opened.token, { onPick: choose });
  $("heads").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    opened.head = (opened.head + by + opened.arrays.heads) % opened.arrays.heads;
    showHead();
    $("heads").children[opened.head].focus();
  });
  return showOpenPrompt();
}
