"""The commands under ``traitscope traits``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from traitscope.cli_options import AsJson, Device, Dtype, Model, TrustRemoteCode, print_json, stdout
from traitscope.errors import InputError

traits_app = typer.Typer(no_args_is_help=True, help="Trait vectors: fit, list, show.", rich_markup_mode=None)


@traits_app.command("fit")
def traits_fit(
    names: Annotated[list[str] | None, typer.Argument(help="Trait names or scenario files.")] = None,
    all_traits: Annotated[bool, typer.Option("--all", help="Every trait of the library.")] = False,
    model: Model = None,
    reader: Annotated[str, typer.Option(help="Method of the readers: lda, mean_diff, logistic, pca, random.")] = "lda",
    steerer: Annotated[str, typer.Option(help="Method of the steerers, likewise.")] = "mean_diff",
    pooling: Annotated[
        str, typer.Option(help="response, prompt_last, or a slice of the response's content: response:0:10.")
    ] = "response",
    orthogonal_to: Annotated[
        str | None, typer.Option(help="Traits, separated by commas, whose directions are projected out.")
    ] = None,
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
    from traitscope.traits.options import FitOptions, names_in
    from traitscope.traits.pooling import Pooling
    from traitscope.traits.scenarios import library_names
    from traitscope.traits.store import find_trait, vectors_for
    from traitscope.traits.vectors import save_vectors

    wanted = library_names() if all_traits else (names or [])
    if not wanted:
        raise InputError("traits fit: name a trait, or use --all")
    options = FitOptions(reader, steerer, Pooling.parse(pooling))
    references = [find_trait(name, Path()) for name in wanted]
    avoided = [find_trait(name, Path()) for name in names_in(orthogonal_to)]
    both = {reference.name for reference in references} & {reference.name for reference in avoided}
    if both:
        raise InputError(f"--orthogonal-to: {', '.join(sorted(both))} cannot be made orthogonal to itself")
    if out is not None:
        check_writable(out)
        for reference in references:
            if (out / f"{reference.name}.safetensors").exists():
                raise InputError(f"{out / reference.name}.safetensors exists already; choose another directory")
    reporter = default_reporter()
    loaded = load_model(model or EMBEDDED_NAME, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    with reporter:
        on_progress = stage(reporter, "texts")
        if avoided:
            others = vectors_for(loaded, avoided, options=options, on_progress=on_progress)
            options = replace(options, avoided=tuple(others))
        fitted = vectors_for(loaded, references, options=options, on_progress=on_progress)
    if out is not None:
        for vectors in fitted:
            save_vectors(vectors, out / f"{vectors.trait}.safetensors")
    print_fitted(stdout(), [describe_vectors(vectors) for vectors in fitted])


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
    """Show a trait's scenario set, or a vector file with what is known of its worth."""
    from traitscope.report.terminal import print_nested
    from traitscope.traits.describe import describe_trait
    from traitscope.traits.store import find_trait

    described = describe_trait(find_trait(name, Path()))
    if as_json:
        print_json(described)
    else:
        print_nested(stdout(), described)
