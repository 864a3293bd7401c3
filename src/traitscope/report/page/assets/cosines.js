"use strict";
// The cosines of the traits' readers.

function drawCosines() {
  const { cosines, deviation, marked_beyond: beyond } = data.cosines;
  if (!cosines.length) return;
  $("random-cosine").textContent =
    `Two random directions: 0 ± ${deviation.toFixed(3)}; beyond ±${beyond.toFixed(3)} is more than three deviations.`;
  const names = traits.map((trait) => trait.name);
  $("cosines").style.height = `${150 + Math.max(40, 30 * names.length)}px`;
  draw(
    "cosines",
    [
      {
        type: "heatmap",
        z: cosines,
        x: names,
        y: names,
        zmin: -1,
        zmax: 1,
        colorscale: diverging(),
        colorbar: { thickness: 10 },
        text: cosines.map((row) => row.map((value) => (value === null ? "–" : value.toFixed(2)))),
        texttemplate: names.length <= 10 || innerWidth > 900 ? "%{text}" : undefined,
        hovertemplate: "%{y} · %{x}: %{z:+.3f}<extra></extra>",
      },
    ],
    {
      xaxis: { tickangle: -40, tickfont: { size: 10 } },
      yaxis: { autorange: "reversed", tickfont: { size: 10 } },
      margin: { l: 60, r: 10, t: 10, b: 60 },
    },
  );
}
