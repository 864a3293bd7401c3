"use strict";
// What the page holds: numbers that are unpacked when they are first shown, prompts, and what is chosen. The page's scripts
// ask the network for nothing, and put untrusted text into the page as text alone: textContent, and plain() where a chart
// would read markup.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const { traits, checkpoints, prompts, steps } = data;
const MISSING = -32768;
const LARGEST = 32767; // what lies beyond is clipped to this, and is shown as beyond the scale
const unpacking = new Map();

function unpack(name, Kind) {
  if (!unpacking.has(name))
    unpacking.set(
      name,
      inflate(name).then((bytes) => new Kind(joined(bytes, Kind.BYTES_PER_ELEMENT).buffer)),
    );
  return unpacking.get(name);
}

async function inflate(name) {
  const bytes = Uint8Array.from(atob($(`blob-${name}`).textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Numbers whose first bytes all came first, then all second ones, with their bytes together again. */
function joined(planes, width) {
  const count = planes.length / width;
  const bytes = new Uint8Array(planes.length);
  for (let b = 0; b < width; b++) for (let i = 0; i < count; i++) bytes[i * width + b] = planes[b * count + i];
  return bytes;
}

async function unpackSteps(name, step) {
  const whole = await unpack(name, Int16Array);
  const valueOf = (steps) => (Math.abs(steps) === LARGEST ? Math.sign(steps) * Infinity : steps * step);
  return Float32Array.from(whole, (steps) => (steps === MISSING ? NaN : valueOf(steps)));
}

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
