"""The commands under ``traitscope traits``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from traitscope.cli_options import AllowForeign, AsJson, Device, Dtype, Model, TrustRemoteCode, print_json, stdout
from traitscope.errors import InputError

traits_app = typer.Typer(
    no_args_is_help=True, help="Trait vectors: fit, validate, compare, show, import, export.", rich_markup_mode=None
)


@traits_app.command("fit")
def traits_fit(
    names: Annotated[list[str] | None, typer.Argument(help="Trait names or scenario files.")] = None,
    all_traits: Annotated[bool, typer.Option("--all", help="Every trait of the library.")] = False,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the vector files here.")] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Fit trait vectors on a model, or find them in the cache."""
    from traitscope.model.embedded import EMBEDDED_NAME
    from traitscope.model.loading import load_model
    from traitscope.report.terminal import print_fitted
    from traitscope.run.prepare import check_writable
    from traitscope.run.progress import default_reporter, stage
    from traitscope.traits.describe import describe_vectors
    from traitscope.traits.scenarios import library_names
    from traitscope.traits.store import find_trait, vectors_for
    from traitscope.traits.vectors import save_vectors

    wanted = library_names() if all_traits else (names or [])
    if not wanted:
        raise InputError("traits fit: name a trait, or use --all")
    references = [find_trait(name, Path()) for name in wanted]
    if out is not None:
        check_writable(out)
        for reference in references:
            if (out / f"{reference.name}.safetensors").exists():
                raise InputError(f"{out / reference.name}.safetensors exists already; choose another directory")
    reporter = default_reporter()
    loaded = load_model(model or EMBEDDED_NAME, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    with reporter:
        fitted = vectors_for(loaded, references, on_progress=stage(reporter, "texts"))
    if out is not None:
        for vectors in fitted:
            save_vectors(vectors, out / f"{vectors.trait}.safetensors")
    print_fitted(stdout(), [describe_vectors(vectors) for vectors in fitted])


@traits_app.command("validate")
def traits_validate(
    names: Annotated[list[str] | None, typer.Argument(help="Trait names, scenario files or vector files.")] = None,
    all_traits: Annotated[bool, typer.Option("--all", help="Every trait of the library.")] = False,
    scenarios: Annotated[Path | None, typer.Option(help="The scenario set of a vector file that has none.")] = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    allow_foreign: AllowForeign = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure what trait vectors are worth on held-out evidence, and keep the card in the vector file."""
    from traitscope.model.embedded import EMBEDDED_NAME
    from traitscope.model.loading import load_model
    from traitscope.report.card import print_verdicts
    from traitscope.run.progress import default_reporter, stage
    from traitscope.traits.describe import describe_vectors
    from traitscope.traits.scenarios import library_names
    from traitscope.traits.store import find_trait
    from traitscope.traits.validation.candidates import scenarios_of, validate_references

    wanted = library_names() if all_traits else (names or [])
    if not wanted:
        raise InputError("traits validate: name a trait, or use --all")
    references = [find_trait(name, Path()) for name in wanted]
    sets = [scenarios_of(reference, scenarios) for reference in references]
    reporter = default_reporter()
    loaded = load_model(model or EMBEDDED_NAME, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    with reporter:
        validated = validate_references(
            loaded, references, sets, allow_foreign=allow_foreign, on_progress=stage(reporter, "texts")
        )
    described = [describe_vectors(vectors) for vectors in validated]
    if as_json:
        print_json(described)
    else:
        print_verdicts(stdout(), described)


@traits_app.command("list")
def traits_list() -> None:
    """List the traits of the library."""
    from traitscope.report.terminal import print_library
    from traitscope.traits.describe import describe_library

    print_library(stdout(), describe_library())


@traits_app.command("show")
def traits_show(
    name: Annotated[str, typer.Argument(help="A trait, a scenario file or a vector file.")],
    as_json: AsJson = False,
) -> None:
    """Show a trait's scenario set and the cards of its vectors, or one vector file with its card."""
    from traitscope.report.card import print_card
    from traitscope.report.terminal import print_nested
    from traitscope.traits.describe import describe_trait
    from traitscope.traits.store import find_trait

    described = describe_trait(find_trait(name, Path()))
    if as_json:
        print_json(described)
        return
    cards = described.pop("cards")
    print_nested(stdout(), described)
    for card in cards:
        print_card(stdout(), described["trait"], card)
