"use strict";
// Colours, and charts as all sections draw them.

// Okabe and Ito's colours with a darker yellow, and lighter ones of the same order for dark screens.
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f8a1e", "#7a7a7a"];
const LIGHT_PALETTE = ["#4aa8e8", "#ff8c42", "#2fc28f", "#e08bc0", "#f0b030", "#9ad4f5", "#c9c24a", "#b0b0b0"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SMOOTHED = 8;
const LEAST_REACH = 2;

const dark = matchMedia("(prefers-color-scheme: dark)");
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const diverging = () => [
  [0, ink("--minus")],
  [0.5, ink("--paper")],
  [1, ink("--plus")],
];
const rising = () => [
  [0, ink("--paper")],
  [1, ink("--plus")],
];
const isDark = () => dark.matches && document.documentElement.dataset.paper === undefined;
const colourOf = (k) => (isDark() ? LIGHT_PALETTE : PALETTE)[k % PALETTE.length];
const lineOf = (k) => ({ color: colourOf(k), dash: DASHES[Math.floor(k / PALETTE.length) % DASHES.length] });

function draw(id, traces, layout = {}, onClick = null) {
  const axis = {
    gridcolor: ink("--line"),
    zerolinecolor: ink("--quiet"),
    linecolor: ink("--line"),
    automargin: true,
  };
  const merged = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: "closest",
    dragmode: false,
    font: { color: ink("--ink"), size: 12, family: "system-ui, sans-serif" },
    margin: { l: 50, r: 12, t: 10, b: 40 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    hoverlabel: { bgcolor: ink("--raised"), font: { color: ink("--ink") } },
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
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

function signed(value, digits = 2) {
  if (value == null || Number.isNaN(value)) return "–";
  const size = Number.isFinite(value) ? Math.abs(value).toFixed(digits) : "(beyond the scale)";
  return `${value < 0 ? "−" : "+"}${size}`;
}

/** The colour scale of some z rows: their 98th percentile, the first position left out. */
function reachOf(...rows) {
  const values = rows.flatMap((row) => (row ? Array.from(row.slice(1)) : []));
  const sizes = values.filter((value) => value !== null && Number.isFinite(value)).map(Math.abs);
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
  return {
    tickvals: places,
    ticktext: places.map((t) => plain(prompt.texts[t])),
    tickangle: -60,
    tickfont: { size: 10 },
  };
}

const ticksThatFit = (id, pixels = 14) => Math.max(8, Math.floor($(id).clientWidth / pixels));

function checkpointTicks() {
  const posts = checkpoints.map((name, c) => [name, c]).filter(([name]) => !name.startsWith("resid_mid"));
  const every = Math.ceil(posts.length / 11);
  const shown = posts.filter((_, place) => place % every === 0);
  return { tickvals: shown.map(([, c]) => c), ticktext: shown.map(([name]) => name), tickfont: { size: 10 } };
}

const matrixOf = (prompt, trait) =>
  checkpoints.map((_, c) => Array.from(prompt.z(trait, c), (z, t) => (t === 0 || !Number.isFinite(z) ? null : z)));

const MOST_NAMED_CELLS = 40000;

/** What pointing at a cell of a map says: the tokens by name, or by number where there are too many to name. */
function namesOfCells(rowNames, columnNames) {
  if (rowNames.length * columnNames.length > MOST_NAMED_CELLS) {
    return { hovertemplate: "row %{y}, column %{x}: %{z:.3f}<extra></extra>" };
  }
  return {
    customdata: rowNames.map((row) => columnNames.map((column) => [plain(row, 30), plain(column, 30)])),
    hovertemplate: "%{customdata[0]} · %{customdata[1]}: %{z:.3f}<extra></extra>",
  };
}
