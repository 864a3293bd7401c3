"""Draw the pictures of ``docs/concepts.md``: ``python docs_tools/pictures.py``. They show how things hang together;
none of them shows a measurement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sketch import BLUE, GREEN, GREY, INK, ORANGE, PANEL, PURPLE, QUIET, Sketch, save

IMAGES = Path(__file__).parent.parent / "docs" / "images"


def residual_stream(path: Path) -> None:
    """The stream as a line, blocks that add to it, checkpoints as dots."""
    sketch = Sketch(20, 6.4)
    y = 3.1
    sketch.arrow((0.6, y), (19.4, y), BLUE)
    names = ["resid_pre.0", "resid_mid.0", "resid_post.0", "resid_mid.1", "resid_post.1"]
    dots = [(2.0 + 3.2 * at, name) for at, name in enumerate(names)]
    for x, name in dots:
        sketch.axes.plot(x, y, "o", color=BLUE, markersize=9)
        sketch.words((x, y - 0.65), name, bold=True)
    sketch.words((8.4, y - 1.2), "also called resid_pre.1", colour=QUIET, size=8)
    sketch.words((2.0, y - 1.2), "the token's embedding", colour=QUIET, size=8)
    added = [("attention 0", ORANGE), ("MLP 0", GREEN), ("attention 1", ORANGE), ("MLP 1", GREEN)]
    blocks = [(3.6 + 3.2 * at, name, colour) for at, (name, colour) in enumerate(added)]
    for x, name, colour in blocks:
        sketch.box((x - 1.1, y + 1.4), (2.2, 0.9), name, colour)
        sketch.line([(x - 1.1, y), (x - 1.1, y + 1.4)], colour, dashed=True)
        sketch.arrow((x + 1.1, y + 1.4), (x + 1.1, y + 0.08), colour)
    sketch.words((3.6, y + 2.65), "reads the stream, adds its write", colour=QUIET, size=8)
    sketch.words((16.5, y + 0.35), "…", size=14)
    sketch.words((18.2, y + 0.85), "resid_post.(L−1)", bold=True)
    sketch.words((18.2, y - 0.5), "then the final norm\nand the logits", colour=QUIET, size=8)
    law = "2L+1 checkpoints for L layers. Two neighbours differ by exactly what one block added."
    sketch.words((10, 0.55), law, size=9.5)
    sketch.save(path)


def trait_vectors(path: Path) -> None:
    """Two clouds of states, the mean difference and the discriminant, and one state's score."""
    random = np.random.default_rng(3)
    covariance = np.array([[1.6, 1.1], [1.1, 1.2]])
    spread = np.linalg.cholesky(covariance)
    negative = random.normal(size=(70, 2)) @ spread.T + (-1.3, -0.2)
    positive = random.normal(size=(70, 2)) @ spread.T + (1.3, 0.2)
    figure = Figure(figsize=(8, 3.9), facecolor=PANEL)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set_facecolor(PANEL)
        axes.set_aspect("equal")
        axes.set_xlim(-5.2, 5.2)
        axes.set_ylim(-4.2, 4.2)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.scatter(*negative.T, s=12, color=BLUE, alpha=0.7)
        axes.scatter(*positive.T, s=12, color=ORANGE, alpha=0.7)
    left.set_title("steerer: from one mean to the other", fontsize=10, color=INK)
    left.annotate("", xy=(2.9, 0.45), xytext=(-2.9, -0.45), arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 2.2})
    left.text(-4.9, 3.5, "− pole", color=BLUE, fontsize=10)
    left.text(3.3, -3.8, "+ pole", color=ORANGE, fontsize=10)
    reader = np.linalg.solve(covariance, np.array([2.6, 0.4]))
    reader /= np.linalg.norm(reader)
    right.set_title("reader: what tells them apart best", fontsize=10, color=INK)
    right.annotate("", xy=reader * 3.8, xytext=-reader * 3.8, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 2.2})
    state = np.array([3.9, -0.6])
    foot = reader * (state @ reader)
    right.plot(*np.stack([state, foot]).T, color=PURPLE, linestyle="--")
    right.plot(*state, "o", color=PURPLE, markersize=8)
    right.plot(*np.stack([np.zeros(2), foot]).T, color=PURPLE, linewidth=4, alpha=0.6)
    right.text(3.3, -0.15, "a state", color=PURPLE, fontsize=9)
    right.text(-0.6, -2.0, "its score", color=PURPLE, fontsize=9)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.03, top=0.9, wspace=0.05)
    save(figure, path)


def z_against_neutral(path: Path) -> None:
    """The same score means different things at two checkpoints; z does not."""
    figure = Figure(figsize=(8, 3.2), facecolor=PANEL)
    grid = np.linspace(-6, 22, 500)
    states = [("an early checkpoint", 0.5, 1.0, 3.5), ("a late checkpoint", 6.0, 4.0, 3.5)]
    for axes, (name, mean, deviation, score) in zip(figure.subplots(1, 2), states, strict=True):
        axes.set_facecolor(PANEL)
        axes.fill_between(grid, np.exp(-(((grid - mean) / deviation) ** 2) / 2), color=GREY, alpha=0.55)
        axes.axvline(score, color=PURPLE, linewidth=2)
        z = (score - mean) / deviation
        axes.set_title(f"{name}: score {score:+.1f} is z {z:+.2f}", fontsize=10, color=INK)
        axes.set_yticks([])
        axes.set_ylim(0, 1.25)
        axes.set_xlabel("score", color=QUIET, fontsize=9)
        axes.tick_params(colors=QUIET, labelsize=8)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.text(22, 0.9, "grey: tokens of neutral replies\nline: a score", color=QUIET, fontsize=8, ha="right")
    figure.subplots_adjust(left=0.03, right=0.97, bottom=0.2, top=0.88, wspace=0.08)
    save(figure, path)


def writes(path: Path) -> None:
    """A score at R as a staircase of what each block added."""
    names = ["resid_pre.0", "attn 0", "MLP 0", "attn 1", "MLP 1", "attn 2", "MLP 2"]
    added = [0.4, -0.3, 0.7, 0.9, -0.6, 1.6, 0.8]
    figure = Figure(figsize=(8, 3.4), facecolor=PANEL)
    axes = figure.subplots()
    axes.set_facecolor(PANEL)
    level = 0.0
    for x, step in enumerate(added):
        colour = QUIET if x == 0 else GREEN if step > 0 else ORANGE
        axes.bar(x, step, bottom=level, color=colour, width=0.62)
        level += step
        axes.plot([x - 0.31, x + 1.31], [level, level], color=GREY, linewidth=1)
        above = step > 0
        end = {"y": level + 0.12, "va": "bottom"} if above else {"y": level - 0.12, "va": "top"}
        axes.text(x, s=f"{step:+.1f}", ha="center", fontsize=8, color=INK, **end)
    axes.bar(len(added), level, color=PURPLE, width=0.62)
    axes.text(len(added), level + 0.12, f"{level:+.1f}", ha="center", fontsize=8, color=INK)
    axes.set_xticks(range(len(added) + 1), [*names, "score at R"], fontsize=9, color=INK)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_ylim(-0.4, 4.2)
    axes.set_yticks([])
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("R = resid_post.2: what each block added towards the reader at R", fontsize=10, color=INK)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.1, top=0.9)
    save(figure, path)


def decode_and_replay(path: Path) -> None:
    """The two passes over the model."""
    sketch = Sketch(20, 9.6)
    sketch.heading((0.4, 9.0), "Decode: while responses are generated, batched, with a KV cache")
    sketch.box((0.4, 6.3), (5.0, 1.6), "prefill\nall prompt tokens at once", BLUE)
    for step in range(4):
        sketch.box((6.2 + 2.3 * step, 6.3), (1.9, 1.6), f"token {step + 1}", BLUE)
        sketch.arrow((5.4 if step == 0 else 5.8 + 2.3 * step, 7.1), (6.2 + 2.3 * step, 7.1))
    sketch.box((15.8, 6.3), (3.8, 1.6), "one step more,\nto read the last token", BLUE, text=8.5)
    sketch.arrow((15.0, 7.1), (15.8, 7.1))
    sketch.line([(0.4, 5.75), (19.6, 5.75)], PURPLE, width=3)
    products = "in each pass, at each checkpoint, on the device: state × all readers → scores, writes, norms"
    sketch.words((10, 5.25), products, colour=PURPLE)
    sketch.heading((0.4, 4.2), "Replay: one pass over token ids that are stored, unpadded and uncached")
    sketch.box((0.4, 1.7), (9.2, 1.6), "prompt and response tokens, all at once", GREEN)
    sketch.arrow((9.6, 2.5), (10.9, 2.5))
    uses = ("open layers", "explain", "fitting", "calibration", "given texts")
    for at, use in enumerate(uses):
        column, row = at % 3, at // 3
        sketch.box((10.9 + 3.0 * column, 2.55 - 1.3 * row), (2.7, 1.0), use, GREEN, text=8.5)
    sketch.note((0.4, 0.6), "verify has a replay of its own that shares none of this code")
    sketch.save(path)


def positions(path: Path) -> None:
    """Row t holds the state that has read token t."""
    tokens = ["<s>", "user:", "France?", "assistant:", "Par", "is", "."]
    sketch = Sketch(20, 6.4)
    for t, token in enumerate(tokens):
        x = 1.0 + 2.6 * t
        generated = t >= 4
        sketch.words((x + 1.1, 5.85), str(t), colour=QUIET, size=9)
        sketch.box((x, 4.6), (2.2, 0.9), token, ORANGE if generated else BLUE, text=9)
        sketch.arrow((x + 1.1, 4.6), (x + 1.1, 3.6), GREY)
        sketch.box((x, 2.7), (2.2, 0.9), f"row {t}", PURPLE, filled=True, text=9)
        if 3 <= t < 6:
            sketch.arrow((x + 2.2, 3.2), (x + 3.3, 4.55), ORANGE, dashed=True)
    sketch.words((0.2, 5.85), "t", colour=QUIET)
    sketch.words((4.8, 1.9), "prompt: the template's tokens too", colour=BLUE)
    sketch.words((15.3, 1.9), "response", colour=ORANGE)
    rule = "Row t holds the state that has read token t. Dashed: it also predicts token t+1."
    last = "The last token is read by a forward step of its own, so that it has a row as well."
    sketch.words((10, 0.8), f"{rule}\n{last}", size=9.5)
    sketch.save(path)


def merging(path: Path) -> None:
    """Prompts shared by experiments become one generation; traits never multiply."""
    sketch = Sketch(20, 8.2)
    asked = [
        ("experiment A\ntraits: hedging", ["Paris?", "Weather?"], 5.9),
        ("experiment B\ntraits: sycophancy", ["Weather?", "My poem?"], 3.4),
        ("experiment C\nopens layer 14", ["Paris?"], 0.9),
    ]
    targets = {"Paris?": 5.9, "Weather?": 3.9, "My poem?": 1.9}
    kept = {"Paris?": "hedging, layer 14 open", "Weather?": "hedging and sycophancy", "My poem?": "sycophancy"}
    for name, prompts, y in asked:
        sketch.box((0.4, y), (4.4, 1.7), name, QUIET)
        for at, prompt in enumerate(prompts):
            top = y + 1.0 - 1.1 * at + (0 if len(prompts) > 1 else -0.5)
            sketch.box((5.6, top), (2.6, 0.85), prompt, BLUE)
            sketch.arrow((8.2, top + 0.42), (11.0, targets[prompt] + 0.65), GREY)
    for prompt, y in targets.items():
        sketch.box((11.0, y), (2.8, 1.3), f"{prompt}\n1 generation", PURPLE, filled=True)
        sketch.words((14.2, y + 0.65), f"scored on {kept[prompt]}", align="left", size=9)
    sketch.words((15.2, 0.7), "five captures, three generations,\none model load", size=9.5, bold=True)
    sketch.save(path)


def shards(path: Path) -> None:
    """What makes a shard exist, and what a kill leaves."""
    sketch = Sketch(20, 7.0)
    sketch.heading((0.4, 6.5), "One shard, one commit")
    written = ["write under\na temporary name", "sync", "rename", "sync the\ndirectory"]
    stages = [*written, "0003.done.json:\nsizes, checksums, rows"]
    widths = [3.9, 2.0, 2.4, 3.0, 4.9]
    x = 0.4
    for at, (stage, width) in enumerate(zip(stages, widths, strict=True)):
        last = at == len(stages) - 1
        sketch.box((x, 4.4), (width, 1.4), stage, GREEN if last else BLUE, filled=last, text=8.5)
        if not last:
            sketch.arrow((x + width, 5.1), (x + width + 0.75, 5.1))
        x += width + 0.75
    sketch.words((17.0, 3.95), "only now does it exist", colour=GREEN, size=8.5)
    sketch.heading((0.4, 3.0), "After a kill")
    for shard in range(8):
        done, torn = shard < 4, shard == 4
        words = f"{shard:04d}\n{'kept' if done else 'redone' if torn else 'to do'}"
        colour = GREEN if done else ORANGE if torn else GREY
        sketch.box((0.4 + 2.4 * shard, 1.1), (2.1, 1.3), words, colour, filled=done)
    law = "traitscope run --resume: leftovers of the torn shard go, what is missing runs, under the plan as frozen"
    sketch.note((0.4, 0.5), law)
    sketch.save(path)


PICTURES: dict[str, Callable[[Path], None]] = {
    "residual-stream": residual_stream,
    "trait-vectors": trait_vectors,
    "z-against-neutral": z_against_neutral,
    "writes": writes,
    "decode-and-replay": decode_and_replay,
    "positions": positions,
    "merging": merging,
    "shards": shards,
}

if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw(IMAGES / f"{name}.svg")
