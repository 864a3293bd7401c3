"""An explanation as a tree on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from traitscope.report.text import one_line

if TYPE_CHECKING:
    from traitscope.attribution.closure import Closure
    from traitscope.attribution.explanation import Explanation
    from traitscope.attribution.tree import Term

_MOST_BEFORE, _MOST_AFTER = 120, 60


def print_explanation(console: Console, explanation: Explanation) -> None:
    """The token in its text, its score, and the tree of what wrote it."""
    positive, negative = explanation.poles
    console.print(Text(f"{explanation.label}, generation {explanation.generation}", style="dim"))
    console.print(_passage(explanation), soft_wrap=True)
    console.print(
        Text(
            f"{explanation.trait}: + {positive} / − {negative}; {explanation.verdict}; at R = {explanation.readout}, "
            f"position {explanation.position} ({explanation.phase})"
        ),
        soft_wrap=True,
    )
    if explanation.position == 0:
        console.print(Text("the first token's states are far larger than any other's: its z is out of scale", "yellow"))
    elif explanation.phase == "prompt":
        console.print(Text("a prompt token: usual and deviation are those of reply tokens all the same", "yellow"))
    tree = Tree(
        Text.assemble(
            (f"z {explanation.z:+.3f}", "bold"),
            f"  score {explanation.score:+.4g}, usual {explanation.neutral_mean:+.4g} ± {explanation.neutral_std:.3g}",
            (f"  (stored by the run: z {explanation.stored_z:+.3f})", "dim"),
        )
    )
    for term in explanation.tree.terms:
        _add(tree, term)
    console.print(tree)
    for title, terms in (("heads", explanation.tree.heads), ("neurons", explanation.tree.neurons)):
        ranking = Tree(Text(f"{title} of all blocks that wrote most", style="bold"))
        for term in terms:
            _add(ranking, term)
        if terms:
            console.print(ranking)
    console.print(
        Text(
            "z = (raw − usual) / deviation, usual and deviation being those of neutral replies. The raw values of a "
            "branch add up to the raw value above them, and so does z, but for single source tokens: their usual value "
            "is not known, their z is raw / deviation. Direct effects only: what a block changed in later blocks is "
            "booked there.",
            style="dim",
        )
    )


_SUMS = {
    "score": "resid_pre.0 and blocks → score at R",
    "attention": "heads × source tokens, bias → attention block",
    "mlp": "neurons, bias → MLP block",
}


def print_closure(console: Console, closure: Closure) -> None:
    """The largest gap of each kind of sum, and where it is."""
    table = Table(title=f"Largest gaps of {closure.generations} generations, {closure.dtype}")
    for name in ("sum", "sums checked", "largest gap", "where"):
        table.add_column(name, justify="right" if name in ("sums checked", "largest gap") else "left")
    for gap in closure.gaps:
        layer = "" if gap.layer is None else f"layer {gap.layer}, "
        where = f"{layer}{gap.trait}, {gap.generation} position {gap.position}"
        table.add_row(_SUMS[gap.kind], f"{gap.n_sums:,}", f"{gap.gap:.1e}", where)
    console.print(table)
    for name, problem in closure.unsplit.items():
        console.print(Text(f"not split: {name}: {problem}"), soft_wrap=True)
    verdict = "all sums close" if closure.closed else "not all sums close"
    console.print(Text(f"{verdict} within {closure.limit:.0e} of the summed sizes of their parts"))


def _passage(explanation: Explanation) -> Text:
    before, after = one_line(explanation.before), one_line(explanation.after)
    shown_before = before if len(before) <= _MOST_BEFORE else "…" + before[-_MOST_BEFORE:]
    shown_after = after if len(after) <= _MOST_AFTER else after[:_MOST_AFTER] + "…"
    lead = " " if explanation.token[:1].isspace() else ""
    gap = " " if explanation.after[:1].isspace() else ""
    token = f"⟦{one_line(explanation.token) or '␣'}⟧"
    return Text.assemble(shown_before, lead, (token, "bold reverse"), gap, shown_after)


def _add(tree: Tree, term: Term) -> None:
    branch = tree.add(_line(term))
    for part in term.parts:
        _add(branch, part)
    if loudest := term.detail.get("largest_activations"):
        branch.add(_loudest_line(loudest))
    if problem := term.detail.get("problem"):
        branch.add(Text(f"not split: {problem}", style="yellow"))


def _line(term: Term) -> Text:
    usual = "" if term.neutral is None else f", usual {term.neutral:+.3g}"
    weak = "dim" if term.label.endswith("rounding") or " other " in term.label else ""
    z = f"{term.z:+.3f}" if abs(term.z) >= 5e-4 or term.z == 0 else f"{term.z:+.0e}"
    return Text.assemble(
        (f"{z}  ", "bold" if abs(term.z) >= 0.1 else ""), (term.label, weak), (f"  raw {term.raw:+.3g}{usual}", "dim")
    )


def _loudest_line(loudest: list[dict[str, Any]]) -> Text:
    shown = ", ".join(f"{n['label']} ({n['activation']:+.2f}: z {n['z']:+.3f})" for n in loudest)
    return Text(f"largest activations, whatever they say of the trait: {shown}", style="dim italic")
