"""The commands under ``traitscope traits``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from traitscope.cli_options import (
    AllowForeign,
    AsJson,
    Device,
    Dtype,
    Model,
    Quantize,
    TrustRemoteCode,
    print_json,
    stdout,
)
from traitscope.errors import InputError

traits_app = typer.Typer(
    no_args_is_help=True, help="Trait vectors: fit, validate, compare, show, import, export.", rich_markup_mode=None
)


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
    quantize: Quantize = None,
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
    from traitscope.traits.options import DEFAULTS, FitOptions, names_in
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
    if (options != DEFAULTS or avoided) and any(reference.kind == "vectors" for reference in references):
        raise InputError("traits fit: a vector file is fitted already; methods and pooling are for scenario sets")
    if out is not None:
        check_writable(out)
        for reference in references:
            if (out / f"{reference.name}.safetensors").exists():
                raise InputError(f"{out / reference.name}.safetensors exists already; choose another directory")
    reporter = default_reporter()
    loaded = load_model(
        model or EMBEDDED_NAME,
        device=device,
        dtype=dtype,
        quantize=quantize,
        trust_remote_code=trust_remote_code,
    )
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


@traits_app.command("validate")
def traits_validate(
    names: Annotated[list[str] | None, typer.Argument(help="Trait names, scenario files or vector files.")] = None,
    all_traits: Annotated[bool, typer.Option("--all", help="Every trait of the library.")] = False,
    scenarios: Annotated[Path | None, typer.Option(help="The scenario set of a vector file that has none.")] = None,
    model: Model = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
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
    loaded = load_model(
        model or EMBEDDED_NAME,
        device=device,
        dtype=dtype,
        quantize=quantize,
        trust_remote_code=trust_remote_code,
    )
    with reporter:
        validated = validate_references(loaded, references, sets, on_progress=stage(reporter, "texts"))
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


@traits_app.command("compare")
def traits_compare(
    names: Annotated[list[str] | None, typer.Argument(help="Traits, scenario files or vector files.")] = None,
    all_traits: Annotated[bool, typer.Option("--all", help="Every trait of the library.")] = False,
    model: Model = None,
    split: Annotated[str, typer.Option(help="Pairs of the cross-AUROC: dev, or test, which is sealed.")] = "dev",
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    out: Annotated[Path | None, typer.Option(help="Write comparison.json and comparison.png here.")] = None,
    as_json: AsJson = False,
    allow_foreign: AllowForeign = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Compare traits: cosines between their directions, and what each reader says of the others' pairs."""
    from traitscope.atomic import write_atomically
    from traitscope.model.embedded import EMBEDDED_NAME
    from traitscope.model.loading import load_model
    from traitscope.report.comparison import print_comparison
    from traitscope.report.comparison_picture import save_picture
    from traitscope.run.prepare import check_writable
    from traitscope.run.progress import default_reporter, stage
    from traitscope.traits.between import compare_traits
    from traitscope.traits.scenarios import library_names
    from traitscope.traits.store import find_trait, vectors_for

    references = [find_trait(name, Path()) for name in (library_names() if all_traits else names or [])]
    if len({reference.name for reference in references}) < max(2, len(references)):
        raise InputError("traits compare: name at least two different traits, or use --all")
    if split not in ("dev", "test"):
        raise InputError(f"--split {split}: use dev or test")
    if out is not None:
        check_writable(out)
        if any((out / f"comparison.{kind}").exists() for kind in ("json", "png")):
            raise InputError(f"{out} holds a comparison already; choose another directory")
    reporter = default_reporter()
    loaded = load_model(
        model or EMBEDDED_NAME,
        device=device,
        dtype=dtype,
        quantize=quantize,
        trust_remote_code=trust_remote_code,
    )
    with reporter:
        on_progress = stage(reporter, "texts")
        vectors = vectors_for(loaded, references, allow_foreign=allow_foreign, on_progress=on_progress)
        result = compare_traits(loaded, references, vectors, split=split, on_progress=on_progress)  # type: ignore[arg-type]
    if out is not None:
        content = json.dumps(result, indent=1, ensure_ascii=False).encode()
        write_atomically(out / "comparison.json", lambda file: file.write(content))
        save_picture(result, out / "comparison.png")
    if as_json:
        print_json(result)
    else:
        print_comparison(stdout(), result)


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
    quantize: Quantize = None,
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
    loaded = load_model(
        model or EMBEDDED_NAME,
        device=device,
        dtype=dtype,
        quantize=quantize,
        trust_remote_code=trust_remote_code,
    )
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
    quantize: Quantize = None,
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
        loaded = load_model(
            model or EMBEDDED_NAME,
            device=device,
            dtype=dtype,
            quantize=quantize,
            trust_remote_code=trust_remote_code,
        )
        with reporter:
            (vectors,) = vectors_for(loaded, [reference], on_progress=stage(reporter, "texts"))
    layers = export_vectors(
        vectors, to, direction=direction, scale=scale, architecture=model_hint(model or vectors.origin.model)
    )
    typer.echo(
        f"wrote {to}: {direction} of {vectors.trait} at resid_post of {len(layers)} layers, {layers[0]} to "
        f"{layers[-1]}; R = {vectors.readout_name}; {vectors.origin.verdict}"
    )
