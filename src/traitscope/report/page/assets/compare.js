"use strict";
// Experiments as distributions, and two prompts on one scale.

function drawExperiments() {
  const name = traits[state.trait].name;
  const groups = data.experiments.filter((group) => group.points[name].length);
  $("experiments").style.height = `${90 + 34 * groups.length}px`;
  const dots = {
    x: [],
    y: [],
    customdata: [],
    mode: "markers",
    marker: { size: 9, color: ink("--accent"), opacity: 0.55 },
    showlegend: false,
    hovertemplate: "%{customdata[0]}: z %{x:+.2f}<extra></extra>",
  };
  const means = {
    x: [],
    y: [],
    error_x: { type: "data", symmetric: false, array: [], arrayminus: [], color: ink("--ink"), thickness: 2 },
    mode: "markers",
    marker: { symbol: "diamond", size: 11, color: ink("--ink") },
    showlegend: false,
    hovertemplate: "mean z %{x:+.2f}<extra></extra>",
  };
  groups.forEach((group, row) => {
    for (const point of group.points[name]) {
      dots.x.push(point.z);
      dots.y.push(row);
      dots.customdata.push([plain(point.label, 60), point.generation]);
    }
    const { mean, low, high } = group.mean[name];
    means.x.push(mean);
    means.y.push(row);
    means.error_x.array.push(high === null ? 0 : high - mean);
    means.error_x.arrayminus.push(low === null ? 0 : mean - low);
  });
  draw(
    "experiments",
    [dots, means],
    {
      xaxis: { title: { text: `mean z, ${name}` }, zeroline: true },
      margin: { l: 120, r: 12, t: 10, b: 45 },
      yaxis: {
        tickvals: groups.map((_, row) => row),
        ticktext: groups.map((group) => plain(group.name, 28)),
        autorange: "reversed",
        zeroline: false,
      },
    },
    (point) => {
      const prompt = point.customdata && byGeneration.get(point.customdata[1]);
      if (prompt) {
        choosePrompt(prompt.number);
        $("prompts").scrollIntoView();
      }
    },
  );
}

/** The two held prompts of the first experiment that differ most in the first trait. */
function farthestPair() {
  const scored = data.table.filter((row) => row.generation && row.z[traits[0]?.name] !== undefined);
  const experiment = scored[0]?.label.split("/")[0];
  const own = scored
    .filter((row) => row.label.split("/")[0] === experiment)
    .sort((a, b) => a.z[traits[0].name] - b.z[traits[0].name]);
  return own.length < 2
    ? [0, Math.min(1, held.length - 1)]
    : [own[0], own.at(-1)].map((row) => byGeneration.get(row.generation).number);
}

async function drawPair() {
  const chosen = () => ["left", "right"].map((side) => held[Number($(side).value)]);
  const pair = await Promise.all(chosen().map((prompt) => prompt.load()));
  if (chosen().some((prompt, which) => prompt !== pair[which])) return; // another choice was made meanwhile
  const { readout } = traits[state.trait];
  const rows = pair.map((prompt) => prompt.z(state.trait, readout));
  const reach = reachOf(...rows);
  ["left", "right"].forEach((side, which) => {
    const marked = showTokens($(`${side}-tokens`), pair[which]);
    paintSigned(marked, rows[which], reach);
  });
  const maps = pair.map((prompt) => (prompt.layers ? matrixOf(prompt, state.trait) : null));
  const mapReach = reachOf(...maps.flatMap((map) => map ?? []));
  $("pair-scale").textContent = `tokens ±${reach.toFixed(1)} z, maps ±${mapReach.toFixed(1)} z`;
  ["left-map", "right-map"].forEach((id, which) => {
    $(id).hidden = !maps[which];
    if (!maps[which]) return;
    draw(
      id,
      [
        {
          type: "heatmap",
          z: maps[which],
          zmin: -mapReach,
          zmax: mapReach,
          colorscale: diverging(),
          showscale: which === 1,
          colorbar: { thickness: 10 },
          ...namesOfCells(checkpoints, pair[which].texts),
        },
      ],
      {
        xaxis: { ...tokenTicks(pair[which], ticksThatFit(id)), showgrid: false },
        yaxis: { ...checkpointTicks(), showgrid: false },
        margin: { l: 80, r: 10, t: 10, b: 70 },
      },
    );
  });
  draw(
    "pair-lines",
    pair.map((prompt, which) => ({
      x: Array.from({ length: prompt.n - prompt.start }, (_, t) => t),
      y: smoothed(rows[which], prompt.start).slice(prompt.start),
      mode: "lines",
      name: plain(titled(prompt), 44),
      line: { color: colourOf(which), width: 3, dash: which ? "dash" : "solid" },
      customdata: prompt.texts.slice(prompt.start).map((text) => plain(text, 30)),
      hovertemplate: "%{customdata}: z %{y:+.2f}<extra></extra>",
    })),
    { xaxis: { title: { text: "token of the response" } }, yaxis: { title: { text: "z" } } },
  );
}

function startCompare() {
  const [low, high] = farthestPair();
  fill(
    $("left"),
    held.map((prompt) => [prompt.number, titled(prompt)]),
    low,
  );
  fill(
    $("right"),
    held.map((prompt) => [prompt.number, titled(prompt)]),
    high,
  );
  for (const side of ["left", "right"]) {
    $(side).addEventListener("change", drawPair);
    const tokens = $(`${side}-tokens`);
    listen(tokens, () => Number(tokens.dataset.position ?? 0), {
      onPick: (t) => {
        tokens.dataset.position = t;
        markCurrent(Array.from(tokens.children), t);
      },
    });
  }
  drawExperiments();
  return drawPair();
}
