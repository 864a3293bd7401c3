"""The commands under ``traitscope traits``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from traitscope.cli_options import AsJson, Device, Dtype, Model, TrustRemoteCode, print_json, stdout
from traitscope.errors import InputError

traits_app = typer.Typer(
    no_args_is_help=True, help="Trait vectors: fit, list, show, import, export.", rich_markup_mode=None
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


@traits_app.command("import")
def traits_import(
    file: Annotated[Path, typer.Argument(help="A .pt, .safetensors or .gguf file with a direction for each layer.")],
    trait: Annotated[str, typer.Option(metavar="NAME", help="What the trait is to be called.")],
    convention: Annotated[
        str | None, typer.Option(help="What row i belongs to: resid_post, resid_pre or hidden_states.")
    ] = None,
    readout: Annotated[
        str | None, typer.Option(metavar="LAYER|CHECKPOINT", help="R; nearest to half depth if left out.")
    ] = None,
    tensor: Annotated[str | None, typer.Option(metavar="NAME", help="Which of several tensors.")] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="Which row it is, if the file holds one direction.")] = None,
    positive: Annotated[str | None, typer.Option(help="The pole that the direction points to.")] = None,
    negative: Annotated[str | None, typer.Option(help="The other pole.")] = None,
    description: Annotated[str | None, typer.Option(help="What the trait is.")] = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The vector file; NAME.safetensors here.")] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Make a vector file of directions that were found elsewhere, calibrated on a model."""
    from traitscope.model.embedded import EMBEDDED_NAME
    from traitscope.model.loading import load_model
    from traitscope.run.progress import default_reporter, stage
    from traitscope.traits.direction_files import read_directions
    from traitscope.traits.importing import TraitLabels, convention_of, import_vectors
    from traitscope.traits.vectors import save_vectors

    labels = TraitLabels.of(trait, description, positive, negative)
    to = out or Path(f"{trait}.safetensors")
    if to.suffix != ".safetensors" or to.exists():
        raise InputError(f"--out {to}: must end in .safetensors, and not exist yet")
    directions = read_directions(file, tensor=tensor, layer=layer)
    stated = convention_of(directions, convention)
    reporter = default_reporter()
    loaded = load_model(model or EMBEDDED_NAME, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    with reporter:
        vectors = import_vectors(
            loaded, directions, stated, labels, readout=readout, on_progress=stage(reporter, "texts")
        )
    try:
        save_vectors(vectors, to)
    except OSError as error:
        raise InputError(f"--out {to}: cannot be written: {error.strerror}") from None
    for row in vectors.origin.method["dropped"]:
        typer.echo(f"left out: {row}", err=True)
    typer.echo(
        f"wrote {to}: {trait} at {len(vectors.covered_names)} of {len(vectors.checkpoints)} checkpoints, "
        f"R = {vectors.readout_name}; {vectors.origin.verdict}"
    )


@traits_app.command("export")
def traits_export(
    name: Annotated[str, typer.Argument(help="A trait, a scenario file or a vector file.")],
    to: Annotated[Path, typer.Option(metavar="FILE", help="A .gguf control vector or a .safetensors file.")],
    direction: Annotated[str, typer.Option(help="steerer or reader.")] = "steerer",
    scale: Annotated[
        str | None, typer.Option(help="unit, or norm (of the usual state): norm for .gguf if left out, else unit.")
    ] = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write one direction a layer for llama.cpp and others; a trait without a vector file is fitted first."""
    from traitscope.model.embedded import EMBEDDED_NAME
    from traitscope.model.loading import load_model
    from traitscope.run.progress import default_reporter, stage
    from traitscope.traits.exporting import export_vectors, model_hint, refuse_unwritable
    from traitscope.traits.store import find_trait, vectors_for
    from traitscope.traits.vectors import load_vectors

    refuse_unwritable(to, direction, scale)
    reference = find_trait(name, Path())
    if reference.kind == "vectors":
        vectors = load_vectors(reference.path)
    else:
        reporter = default_reporter()
        loaded = load_model(model or EMBEDDED_NAME, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        with reporter:
            (vectors,) = vectors_for(loaded, [reference], on_progress=stage(reporter, "texts"))
    layers = export_vectors(
        vectors, to, direction=direction, scale=scale, architecture=model_hint(model or vectors.origin.model)
    )
    typer.echo(
        f"wrote {to}: {direction} of {vectors.trait} at resid_post of {len(layers)} layers, {layers[0]} to "
        f"{layers[-1]}; R = {vectors.readout_name}; {vectors.origin.verdict}"
    )
