"use strict";
// Which section is drawn when. The last script.

const waiting = new Map();

/** Draw a section when it comes near the window, or a while after the page opened, so that it can be printed. */
function whenNear(id, start) {
  if (!$(id)) return;
  const watcher = new IntersectionObserver(
    (seen) => {
      if (seen.some((entry) => entry.isIntersecting)) begin(id);
    },
    { rootMargin: "800px" },
  );
  waiting.set(id, { start, watcher });
  watcher.observe($(id));
}

function begin(id) {
  const { start, watcher } = waiting.get(id) ?? {};
  if (!start) return undefined;
  waiting.delete(id);
  watcher.disconnect();
  return Promise.resolve(start()).then(() => {
    $(id).dataset.drawn = "yes";
  });
}

const isDrawn = (id) => $(id)?.dataset.drawn === "yes";

function redrawLater() {
  if (isDrawn("compare")) {
    drawExperiments();
    drawPair();
  }
}

function redraw() {
  if (held.length) showTrait();
  redrawLater();
  if (isDrawn("open")) {
    drawHeads();
    showHead();
  }
  if (isDrawn("traits")) drawCosines();
}

// Paper is light whatever the screen is.
addEventListener("beforeprint", () => {
  document.documentElement.dataset.paper = "yes";
  redraw();
});
addEventListener("afterprint", () => {
  delete document.documentElement.dataset.paper;
  redraw();
});
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
