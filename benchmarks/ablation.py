"""Does attribution tell what matters? Prints the tables of docs/attribution-study.md.

On the reference night and the embedded model (float32), for each trait: what the exact terms say about taking one head
or neuron to its neutral mean (its direct effect on z at R), beside what the score does when that is done (its total
effect, which also runs through everything behind the component). ``--out FILE`` keeps all figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata, spearmanr

from traitscope.attribution.attribute import attribute
from traitscope.attribution.neutral import neutral_means
from traitscope.attribution.terms import BlockKind, BlockTerms, HeadTerms, NeutralMeans
from traitscope.bench.machine import describe_machine
from traitscope.model.blocks import Block
from traitscope.model.decode import decode
from traitscope.model.loading import LanguageModel, load_source
from traitscope.model.replay import replay
from traitscope.model.sampling import Sampling
from traitscope.model.watch import watch
from traitscope.run.prepare import Prepared, prepare
from traitscope.suite.file import load_suite
from traitscope.suite.tokens import TokenDescriber
from traitscope.traits.store import vectors_for
from traitscope.traits.vectors import TraitVectors

N_CHOSEN = 20
N_RESAMPLES = 2000
SEED = 0
Kind = Literal["head", "neuron"]
Pool = Literal["top", "random"]
DEPTHS = ((0, 0), (1, 2), (3, 5), (6, 99))
"""Bands of how many layers a component lies in front of R's layer."""
KINDS: tuple[Kind, ...] = ("head", "neuron")
BLOCK_KINDS: dict[Kind, BlockKind] = {"head": "attention", "neuron": "mlp"}


class Text(NamedTuple):
    """One generation: the tokens of its prompt, then of its response, and the positions of the response's content."""

    token_ids: list[int]
    n_prompt: int
    content: list[int]


@dataclass(frozen=True, order=True)
class Component:
    """A head or a neuron, by its number in its layer."""

    layer: int
    kind: Kind
    index: int


@dataclass(frozen=True)
class Case:
    """A component that was chosen for a trait (by its number)."""

    trait: int
    pool: Pool
    component: Component


@dataclass(frozen=True)
class Effects:
    """Effects of ``n`` cases in units of z, summed over each text's content tokens.

    ``direct`` and ``total`` are ``[n_texts, n]``, ``n_tokens`` is ``[n_texts]``.
    """

    cases: list[Case]
    direct: np.ndarray
    total: np.ndarray
    n_tokens: np.ndarray

    def of(self, keep: Callable[[Case], bool]) -> Effects:
        chosen = [number for number, case in enumerate(self.cases) if keep(case)]
        cases = [self.cases[number] for number in chosen]
        return Effects(cases, self.direct[:, chosen], self.total[:, chosen], self.n_tokens)

    def means(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean direct and total effect ``[..., n]`` a token, texts weighted by ``weights`` ``[..., n_texts]``."""
        n_tokens = (weights @ self.n_tokens)[..., None]
        return weights @ self.direct / n_tokens, weights @ self.total / n_tokens

    def overall(self) -> tuple[np.ndarray, np.ndarray]:
        return self.means(np.ones(len(self.n_tokens)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    given = parser.parse_args()
    started = time.perf_counter()
    prepared = prepare(load_suite("overnight"), device="cpu", dtype="float32")
    model = load_source(prepared.source, device="cpu", dtype="float32")
    vectors = vectors_for(model, prepared.references)
    effects = measured(model, texts_of(model, prepared), vectors, neutral_means(model))
    found = figures(effects, vectors)
    found |= {"seconds": time.perf_counter() - started, "machine": describe_machine(model)}
    show(found)
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1))


def texts_of(model: LanguageModel, prepared: Prepared) -> list[Text]:
    """The suite's prompts with the model's own greedy responses."""
    planned = prepared.plan.runnable
    rows = decode(
        model,
        [generation.prompt.token_ids for generation in planned],
        max_new_tokens=planned[0].key.max_new_tokens,
        sampling=Sampling(),
        seeds=[0] * len(planned),
    )
    describer = TokenDescriber(model.tokenizer)
    texts = []
    for generation, row in zip(planned, rows, strict=True):
        described = describer.rows(generation.prompt, row.response_ids)
        texts.append(Text(described.token_id, generation.n_prompt, np.flatnonzero(described.content()).tolist()))
    return texts


def measured(
    model: LanguageModel, texts: Sequence[Text], vectors: Sequence[TraitVectors], neutral: NeutralMeans
) -> Effects:
    """Direct and total effects of the components that are chosen for each trait."""
    direct = direct_effects(model, texts, vectors, neutral)
    n_tokens = np.array([len(text.content) for text in texts])
    random = np.random.default_rng(SEED)
    cases = [case for trait in range(len(vectors)) for case in chosen_cases(direct, n_tokens, trait, random)]
    components = sorted({case.component for case in cases})
    total = np.stack([total_effects(model, text, components, vectors, neutral) for text in texts])
    return Effects(
        cases,
        np.stack([direct[c.component.kind][:, c.trait, c.component.layer, c.component.index] for c in cases], axis=1),
        np.stack([total[:, c.trait, components.index(c.component)] for c in cases], axis=1),
        n_tokens,
    )


def direct_effects(
    model: LanguageModel, texts: Sequence[Text], vectors: Sequence[TraitVectors], neutral: NeutralMeans
) -> dict[Kind, np.ndarray]:
    """What each component's exact term says about its ablation, summed over each text's content tokens.

    Returns ``[n_texts, n_traits, n_layers, n_heads or n_neurons]`` in units of z; NaN for what lies behind a trait's R.
    """
    found: dict[Kind, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for text in texts:
        split = attribute(model, text.token_ids, vectors, text.content, neutral)
        for kind in KINDS:
            blocks = [block for block in split.blocks if block.kind == BLOCK_KINDS[kind]]
            found[kind].append(np.stack([_block_effects(block, vectors) for block in blocks], axis=1))
    return {kind: np.stack(effects) for kind, effects in found.items()}


def _block_effects(block: BlockTerms, vectors: Sequence[TraitVectors]) -> np.ndarray:
    """``[n_traits, n_parts]``."""
    parts = block.parts
    assert parts is not None
    assert parts.neutral is not None
    terms = parts.terms.sum(axis=-1).transpose(0, 2, 1) if isinstance(parts, HeadTerms) else parts.terms
    effects = -(terms - parts.neutral[:, None]).sum(axis=1) / _deviations(vectors)[:, None]
    effects[[block.checkpoint > vector.readout for vector in vectors]] = np.nan
    return effects


def _deviations(vectors: Sequence[TraitVectors]) -> np.ndarray:
    """What one z is worth at each trait's R: ``[n_traits]``."""
    return np.array([float(vector.calibration.std["response_token"][vector.readout]) for vector in vectors])


def chosen_cases(
    direct: dict[Kind, np.ndarray], n_tokens: np.ndarray, trait: int, random: np.random.Generator
) -> Iterator[Case]:
    """Of each kind the components with the largest direct effects on a trait, and as many drawn from the others."""
    for kind in KINDS:
        size = np.abs(direct[kind][:, trait].sum(axis=0) / n_tokens.sum())
        largest_first = [flat for flat in np.argsort(-size, axis=None) if np.isfinite(size.flat[flat])]
        drawn = random.choice(largest_first[N_CHOSEN:], N_CHOSEN, replace=False)
        pools: tuple[tuple[Pool, Sequence[int]], ...] = (("top", largest_first[:N_CHOSEN]), ("random", drawn.tolist()))
        for pool, numbers in pools:
            for number in numbers:
                layer, index = np.unravel_index(number, size.shape)
                yield Case(trait, pool, Component(int(layer), kind, int(index)))


class _EnoughError(Exception):
    """Ends a forward pass at the last R."""


def total_effects(
    model: LanguageModel,
    text: Text,
    components: Sequence[Component],
    vectors: Sequence[TraitVectors],
    neutral: NeutralMeans,
) -> np.ndarray:
    """How the score of each trait moves when one component is ablated: ``[n_traits, n_components]``.

    In units of z, summed over the text's content tokens; zero for a component behind a trait's R. ``components`` are
    sorted. All are measured in one pass: its first row is the untouched text, and in front of each layer a copy of
    that row joins the batch for each of the layer's components.
    """
    moved = np.zeros((len(vectors), len(components)))
    deviations = _deviations(vectors)

    def observe(checkpoint: int, state: torch.Tensor) -> None:
        for trait, vector in enumerate(vectors):
            if vector.readout == checkpoint:
                rows = state.unflatten(0, (-1, len(text.token_ids)))[:, text.content]
                scores = (rows.double() @ vector.reader[checkpoint].double()).sum(dim=1).numpy()
                moved[trait, : len(scores) - 1] = (scores[1:] - scores[0]) / deviations[trait]
        if checkpoint == max(vector.readout for vector in vectors):
            raise _EnoughError

    with (
        suppress(_EnoughError),
        ablating(model, components, neutral, text.n_prompt),
        watch(model.module, model.anatomy, observe),
    ):
        replay(model, text.token_ids)
    return moved


@contextmanager
def ablating(
    model: LanguageModel, components: Sequence[Component], neutral: NeutralMeans, n_prompt: int
) -> Iterator[None]:
    """Give each of the sorted ``components`` a row of the batch in which it says its neutral mean.

    It does so at the response's positions, the only ones that the neutral mean describes: it was taken over response
    tokens. The prompt stays as it was, and with it position 0, whose massive states have no like among them.
    """
    layers = sorted({component.layer for component in components})
    projections = [(layer, *found) for layer in layers for found in _projections(model, layer)]
    with ExitStack() as stack:
        for layer in layers:
            module = model.module.get_submodule(model.anatomy.layers[layer].path)
            n_rows = sum(component.layer == layer for component in components)
            stack.callback(module.register_forward_pre_hook(_appending(n_rows)).remove)
        for layer, kind, path, width in projections:
            slices = {
                1 + row: slice(c.index * width, (c.index + 1) * width)
                for row, c in enumerate(components)
                if (c.layer, c.kind) == (layer, kind)
            }
            inputs = torch.from_numpy(neutral[layer, BLOCK_KINDS[kind]].inputs)
            hook = _replacing(slices, inputs, n_prompt)
            stack.callback(model.module.get_submodule(path).register_forward_pre_hook(hook).remove)
        yield


def _projections(model: LanguageModel, layer: int) -> Iterator[tuple[Kind, str, int]]:
    """Of each kind: the projection that reads its components, and how many inputs each of them has."""
    found = model.blocks[layer]
    n_heads = int(model.module.config.num_attention_heads)
    blocks: dict[Kind, Block | None] = {"head": found.attention, "neuron": found.mlp}
    for kind, block in blocks.items():
        assert block is not None
        assert block.projection is not None
        # Neutral inputs are what the projection reads only where nothing scales what it returns.
        assert block.norm is None
        assert block.multiplier == 1
        n_inputs = model.module.get_submodule(block.projection).in_features
        yield kind, block.projection, n_inputs // n_heads if kind == "head" else 1


def _appending(n_rows: int) -> Callable[..., Any]:
    def hook(_module: Any, args: Any) -> Any:
        return torch.cat([args[0], args[0][:1].expand(n_rows, -1, -1)]), *args[1:]

    return hook


def _replacing(slices: dict[int, slice], inputs: torch.Tensor, n_prompt: int) -> Callable[..., Any]:
    def hook(_module: Any, args: Any) -> None:
        # In place: nothing but the projection reads its input.
        for row, where in slices.items():
            args[0][row, n_prompt:, where] = inputs[where]

    return hook


def figures(effects: Effects, vectors: Sequence[TraitVectors]) -> dict[str, Any]:
    """All that is reported, by trait and kind of component."""
    names = [vector.trait for vector in vectors]
    layers = [vector.readout_layer for vector in vectors]

    def has_no_way_but_direct(case: Case) -> bool:
        return case.component.kind == "neuron" and case.component.layer == layers[case.trait]

    only_direct = effects.of(has_no_way_but_direct)
    direct, total = only_direct.overall()
    groups = []
    for trait in (*range(len(names)), None):
        for kind in (*KINDS, None):
            of_group = effects.of(lambda c, t=trait, k=kind: t in (None, c.trait) and k in (None, c.component.kind))  # type: ignore[misc]
            name = "all four" if trait is None else names[trait]
            parts = "both" if kind is None else f"{kind}s"
            others = of_group.of(lambda case: not has_no_way_but_direct(case))
            groups.append({"trait": name, "parts": parts, **group_figures(of_group), "indirect": correlation(others)})
    return {
        "readouts": {vector.trait: vector.readout_name for vector in vectors},
        "texts": len(effects.n_tokens),
        "content_tokens": int(effects.n_tokens.sum()),
        "distinct_components": len({case.component for case in effects.cases}),
        "only_direct": {"n": len(direct), "largest_difference": float(np.abs(total - direct).max(initial=0))},
        "groups": groups,
        "by_depth": [depth_figures(effects, layers, band, kind) for band in DEPTHS for kind in KINDS],
        "cases": [
            {"trait": names[case.trait], "pool": case.pool, **asdict(case.component), "direct": d, "total": t}
            for case, d, t in zip(effects.cases, *(means.tolist() for means in effects.overall()), strict=True)
        ],
    }


def depth_figures(effects: Effects, layers: Sequence[int], band: tuple[int, int], kind: Kind) -> dict[str, Any]:
    """How direct and total effects of all traits go together at some distance from R, whose ``layers`` are given."""
    first, last = band
    cases = effects.of(lambda c: c.component.kind == kind and first <= layers[c.trait] - c.component.layer <= last)
    direct, total = cases.of(lambda case: case.pool == "top").overall()
    return {
        "layers_in_front": band,
        "parts": f"{kind}s",
        "n_top": len(direct),
        "rank_correlation": correlation(cases),
        "top_sign_agreement": _same_sign(direct, total),
    }


def _same_sign(direct: np.ndarray, total: np.ndarray) -> float:
    return float((np.sign(direct) == np.sign(total)).mean())


def group_figures(effects: Effects) -> dict[str, Any]:
    """How direct and total effects go together in one group of cases."""
    pools = {"all": effects} | {pool: effects.of(lambda c, p=pool: c.pool == p) for pool in ("top", "random")}  # type: ignore[misc]
    direct, total = pools["top"].overall()
    sizes = {pool: float(np.median(np.abs(pools[pool].overall()[1]))) for pool in ("top", "random")}
    return {
        "rank_correlation": {pool: correlation(cases) for pool, cases in pools.items()},
        "top_rank_correlation_of_sizes": float(spearmanr(np.abs(direct), np.abs(total)).statistic),
        "top_sign_agreement": _same_sign(direct, total),
        "top_total_over_direct": np.percentile(total / direct, [25, 50, 75]).tolist(),
        "median_size_of_total": sizes,
        "top_over_random": sizes["top"] / sizes["random"],
    }


def correlation(effects: Effects) -> dict[str, Any]:
    """Spearman's rank correlation with 95 % bootstrap intervals, over components and over texts."""
    direct, total = effects.overall()
    random = np.random.default_rng(SEED)
    by_text = effects.means(_resamples(len(effects.n_tokens), random))
    return {
        "n": len(direct),
        "rho": float(spearmanr(direct, total).statistic),
        "over_components": _interval(_by_component(effects, random)),
        "over_texts": _interval(_correlations(*(rankdata(means, axis=1) for means in by_text))),
    }


def _resamples(n: int, random: np.random.Generator) -> np.ndarray:
    """How often each of ``n`` things is drawn: ``[N_RESAMPLES, n]``."""
    return random.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)


def _by_component(effects: Effects, random: np.random.Generator) -> np.ndarray:
    """A component that was chosen for several traits is drawn with all its cases, which are not independent."""
    numbers = {component: n for n, component in enumerate(sorted({case.component for case in effects.cases}))}
    times = _resamples(len(numbers), random)[:, [numbers[case.component] for case in effects.cases]]
    return _correlations(*(_ranks(means, times) for means in effects.overall()), times)


def _ranks(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Ranks of different ``values`` ``[n]`` in samples that hold each of them ``times`` ``[samples, n]``."""
    order = np.argsort(values)
    ranks = np.empty(times.shape)
    ranks[:, order] = times[:, order].cumsum(axis=1) - (times[:, order] - 1) / 2
    return ranks


def _correlations(x: np.ndarray, y: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    """Pearson's correlation of each row of ``x`` and ``y`` ``[samples, n]``, each entry taken ``times`` (else once)."""
    weights = np.ones(x.shape) if times is None else times
    x, y = (v - (weights * v).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True) for v in (x, y))
    return (weights * x * y).sum(axis=1) / np.sqrt((weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1))


def _interval(values: np.ndarray) -> list[float]:
    return np.percentile(values, [2.5, 97.5]).tolist()


def show(found: dict[str, Any]) -> None:
    console = Console(width=220)
    console.print(
        f"{found['texts']} texts, {found['content_tokens']} content tokens, {found['distinct_components']} components"
    )
    console.print(correlation_table(found["groups"]), effect_table(found["groups"]), depth_table(found["by_depth"]))
    check = found["only_direct"]
    console.print(
        f"{check['n']} neurons in R's own layer, where both effects are the same quantity: they differ by at most "
        f"{check['largest_difference']:.1e} z. {found['seconds']:.0f} s on {found['machine']['threads']} threads."
    )


def correlation_table(groups: Sequence[dict[str, Any]]) -> Table:
    pools = ("all", "top", "random")
    table = Table("trait", "parts", *pools, "all but R's own neurons", box=box.MARKDOWN)
    for group in groups:
        shown = [*(group["rank_correlation"][pool] for pool in pools), group["indirect"]]
        table.add_row(group["trait"], group["parts"], *(_shown(entry) for entry in shown))
    return table


def _shown(entry: dict[str, Any]) -> str:
    intervals = "; ".join(f"{low:.2f} to {high:.2f}" for low, high in (entry["over_components"], entry["over_texts"]))
    return f"{entry['rho']:.2f} ({intervals})"


def effect_table(groups: Sequence[dict[str, Any]]) -> Table:
    heads = ("same sign", "total / direct", "rank correlation of sizes", "size of total, top", "random", "top / random")
    table = Table("trait", "parts", *heads, box=box.MARKDOWN)
    for group in groups:
        low, middle, high = group["top_total_over_direct"]
        sizes = group["median_size_of_total"]
        table.add_row(
            group["trait"],
            group["parts"],
            f"{group['top_sign_agreement']:.0%}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{group['top_rank_correlation_of_sizes']:.2f}",
            f"{sizes['top']:.4f}",
            f"{sizes['random']:.4f}",
            f"{group['top_over_random']:.1f}",
        )
    return table


def depth_table(depths: Sequence[dict[str, Any]]) -> Table:
    table = Table("layers in front of R", "parts", "cases", "of the top", "all", "same sign, top", box=box.MARKDOWN)
    for entry in depths:
        first, last = entry["layers_in_front"]
        table.add_row(
            f"{first} or more" if last == 99 else str(first) if first == last else f"{first} to {last}",
            entry["parts"],
            str(entry["rank_correlation"]["n"]),
            str(entry["n_top"]),
            _shown(entry["rank_correlation"]),
            f"{entry['top_sign_agreement']:.0%}",
        )
    return table


if __name__ == "__main__":
    main()
