"use strict";
// Tokens as text: colours by sign, the pointer and the arrow keys.

const LEAST_UNDERLINED = 0.5;

function showTokens(container, prompt) {
  container.replaceChildren($(`tokens-${prompt.number}`).content.cloneNode(true));
  const spans = Array.from(container.children);
  spans.forEach((span) => {
    if (span.textContent === "") span.textContent = "∅";
  });
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
function listen(container, current, { onMove = () => {}, onPick, onVertical = null }) {
  const positionOf = (event) => Array.prototype.indexOf.call(container.children, event.target.closest("span"));
  container.addEventListener("mouseover", (event) => {
    const t = positionOf(event);
    if (t >= 0) onMove(t);
  });
  container.addEventListener("mouseleave", () => onMove(current()));
  container.addEventListener("click", (event) => {
    const t = positionOf(event);
    if (t >= 0) onPick(t);
  });
  container.addEventListener("keydown", (event) => {
    const last = container.children.length - 1;
    const to = { ArrowRight: current() + 1, ArrowLeft: current() - 1, Home: 0, End: last }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      onPick(Math.max(0, Math.min(last, to)));
    }
    const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (by !== undefined && onVertical) {
      event.preventDefault();
      onVertical(by);
    }
  });
}

function markCurrent(spans, position) {
  spans.forEach((span, t) => span.classList.toggle("here", t === position));
  if (spans[position]) scrollWithin(spans[position].parentElement, spans[position]);
}

/** Bring a token into its box's view. The page itself stays where its reader is. */
function scrollWithin(box, span) {
  const above = span.offsetTop - box.scrollTop;
  if (above < 0 || above + span.offsetHeight > box.clientHeight) box.scrollTop = span.offsetTop - box.clientHeight / 2;
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  select.value = String(chosen);
}

/** The command that brings what this page does not hold of a prompt. */
const bringing = (prompt) => `traitscope report ${data.run} --select ${prompt.generation}`;

const titled = (prompt) => `${prompt.labels[0]}: ${prompt.prompt.replaceAll("\n", " ").slice(0, 70)}`;
