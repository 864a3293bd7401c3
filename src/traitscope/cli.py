"""The command line: each command a thin call into one room. Heavy libraries are imported inside commands."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from traitscope import __version__
from traitscope.cli_analyse import analyse
from traitscope.cli_options import (
    AllowForeign,
    AsJson,
    AutoOrNumber,
    Device,
    Devices,
    Dtype,
    Model,
    Quantize,
    TrustRemoteCode,
    print_json,
    stdout,
)
from traitscope.cli_report import report, report_at_end
from traitscope.cli_traits import traits_app
from traitscope.errors import InputError, TraitscopeError
from traitscope.run.interruption import Interrupted

if TYPE_CHECKING:
    from traitscope.run.prepare import Prepared
    from traitscope.run.tracking import Tracking
    from traitscope.suite.file import LoadedSuite

app = typer.Typer(
    name="traitscope",
    help="Trait scores for every token at every layer, in one pass over a suite of prompts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(traits_app, name="traits")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"traitscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command()(analyse)
app.command()(report)

_DEFAULT_SUITE = "overnight"
_SUITE_HELP = "A suite file, or a built-in suite (overnight, medium, full, confound)."
_DEFAULT_OUT = Path("runs")

MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longest response, in every experiment.")]
Out = Annotated[Path, typer.Option(help="Where run directories are made.")]
RunDir = Annotated[Path, typer.Argument(help="A run directory.")]


@app.command()
def run(
    suite: Annotated[str | None, typer.Argument(help=_SUITE_HELP)] = None,
    model: Model = None,
    out: Out = _DEFAULT_OUT,
    device: Device = "auto",
    devices: Devices = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    batch_size: AutoOrNumber = "auto",
    shard_size: AutoOrNumber = "auto",
    max_new_tokens: MaxNewTokens = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN_DIR", help="Go on with this run.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="With --resume: run failed generations again.")] = False,
    deep: Annotated[bool, typer.Option(help="With --resume: check checksums, not only sizes.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and stop.")] = False,
    retime: Annotated[bool, typer.Option(help="Time the model anew instead of trusting its remembered pace.")] = False,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="Compile the decode step, which takes minutes once. Default: on CUDA only."
        ),
    ] = None,
    allow_foreign: AllowForeign = False,
    trust_remote_code: TrustRemoteCode = False,
    track: Annotated[
        str | None, typer.Option(metavar="TRACKER", help="Tell a tracker: trackio, wandb or module:object.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a suite in one pass, or go on with a run."""
    _refuse_both(device, devices)
    tracking = _tracking(track)
    width = _auto_or_number("--batch-size", batch_size)
    per_shard = _auto_or_number("--shard-size", shard_size)
    if resume is not None:
        if width or per_shard or dry_run or retime or compiled is not None:
            raise InputError(
                "--batch-size, --shard-size, --dry-run, --retime and --compile do not go with --resume: "
                "the run is frozen"
            )
        with tracking:
            _resume(
                resume,
                suite,
                model,
                max_new_tokens,
                device,
                devices,
                dtype,
                quantize,
                tracking,
                retry_failed=retry_failed,
                deep=deep,
            )
            _finish(resume, as_json, tracking)
        return
    if retry_failed or deep:
        raise InputError("--retry-failed and --deep need --resume RUN_DIR")
    loaded = _loaded_suite(suite or _DEFAULT_SUITE, model, max_new_tokens)
    if dry_run:
        _show_plan(
            _prepared(loaded, device, dtype, quantize, allow_foreign, trust_remote_code, devices), width, as_json
        )
        return
    prepared = _prepared(loaded, device, dtype, quantize, allow_foreign, trust_remote_code, devices)
    with tracking:
        run_dir = _start(
            prepared,
            out,
            batch_size=width,
            shard_size=per_shard,
            allow_foreign=allow_foreign,
            retime=retime,
            compiled=compiled,
            tracking=tracking,
        )
        _finish(run_dir, as_json, tracking)


@app.command()
def plan(
    suite: Annotated[str, typer.Argument(help=_SUITE_HELP)] = _DEFAULT_SUITE,
    model: Model = None,
    device: Device = "auto",
    devices: Devices = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    batch_size: AutoOrNumber = "auto",
    max_new_tokens: MaxNewTokens = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="With --model: what it needs of e.g. 24GB, from its configuration alone."),
    ] = None,
    allow_foreign: AllowForeign = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Say what a suite comes down to and what it will cost, without loading the model."""
    _refuse_both(device, devices)
    if memory is not None:
        _show_sizes(model, memory, dtype, quantize, trust_remote_code, as_json)
        return
    width = _auto_or_number("--batch-size", batch_size)
    loaded = _loaded_suite(suite, model, max_new_tokens)
    _show_plan(_prepared(loaded, device, dtype, quantize, allow_foreign, trust_remote_code, devices), width, as_json)


@app.command()
def capture(
    prompts_file: Annotated[Path, typer.Option(help="A .txt, .jsonl, .csv or .parquet file.")],
    traits: Annotated[str, typer.Option(help="Names or files, separated by commas.")],
    model: Model = None,
    out: Out = _DEFAULT_OUT,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    batch_size: AutoOrNumber = "auto",
    max_new_tokens: MaxNewTokens = None,
    allow_foreign: AllowForeign = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Capture one prompt file without writing a suite."""
    from traitscope.suite.file import Experiment, LoadedSuite, Suite

    named = [name.strip() for name in traits.split(",") if name.strip()]
    if not named:
        raise InputError("--traits: name at least one trait")
    experiment = Experiment(name=prompts_file.stem or "capture", prompts=str(prompts_file.absolute()))
    suite = Suite(name="capture", traits=named, experiments=[experiment])
    loaded = LoadedSuite(suite, Path(), "capture").with_overrides(model=model, max_new_tokens=max_new_tokens)
    width = _auto_or_number("--batch-size", batch_size)
    prepared = _prepared(loaded, device, dtype, quantize, allow_foreign, trust_remote_code)
    run_dir = _start(prepared, out, batch_size=width, shard_size=None, allow_foreign=allow_foreign)
    _finish(run_dir, as_json)


@app.command()
def status(
    run_dir: RunDir,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep looking until the run is complete; Ctrl-C leaves.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="With --watch: how often to look.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Say where a run stands, once or while it runs."""
    from traitscope.report.status import print_status
    from traitscope.run.status import run_status

    if watch:
        if as_json:
            raise InputError("status: --json says it once; leave out --watch, and ask again as often as you like")
        _watch(run_dir, every)
        return
    found = run_status(run_dir)
    if as_json:
        print_json(found)
    else:
        print_status(stdout(), found)
    if any(found["counts"].get(kind) for kind in ("failed", "too_long")) or not _verified(found):
        raise typer.Exit(1)


def _verified(found: Mapping[str, Any]) -> bool:
    return found["verify"] is None or found["verify"]["passed"]


def _watch(run_dir: Path, every: float) -> None:
    """End as the run did: with exit code 1 if not all went well. Leaving early says nothing of the run."""
    from traitscope.report.status import print_changes, show_live
    from traitscope.run.watching import watch_run

    console = stdout()
    show = show_live if console.is_terminal else print_changes
    try:
        last = show(console, watch_run(run_dir, every))
    except KeyboardInterrupt:
        return
    if not last["went_well"]:
        raise typer.Exit(1)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where the files go; it must not hold a suite yet.")],
    suite: Annotated[
        str, typer.Option(help="Which built-in suite: overnight, medium, full or confound.")
    ] = _DEFAULT_SUITE,
) -> None:
    """Write a built-in suite and its prompt files, to edit."""
    from traitscope.suite.file import built_in_suite_folder

    source = built_in_suite_folder(suite)
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    if standing := [file for file in files if (directory / file).exists()]:
        raise InputError(f"{directory}: {standing[0]} exists already there; choose another directory")
    try:
        for file in files:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            (directory / file).write_bytes((source / file).read_bytes())
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {error.strerror}") from None
    typer.echo(f"wrote {len(files)} files; edit them, then: traitscope run {directory / 'suite.yaml'}")


@app.command()
def bench(
    suite: Annotated[
        str, typer.Argument(help="A workload (reference, samples, short) or a suite file.", metavar="[SUITE]")
    ] = "reference",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: about two minutes.")] = False,
    model: Model = None,
    traits: Annotated[int | None, typer.Option(min=1, help="This many random traits instead of the suite's.")] = None,
    instances: Annotated[int, typer.Option(min=1, help="Also run this many of ours side by side.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the JSON and the picture go.")] = _DEFAULT_OUT,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure on this machine what traitscope costs against the old way and plain generation."""
    with _quick_imports():
        from traitscope.bench.files import save_bench
        from traitscope.bench.session import BenchOptions, run_bench
        from traitscope.bench.table import print_bench
        from traitscope.run.prepare import check_writable
        from traitscope.run.progress import default_reporter

    check_writable(out)
    options = BenchOptions(
        workload=suite,
        model=model,
        n_traits=traits,
        n_instances=instances,
        quick=quick,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    result = run_bench(options, default_reporter())
    figures, picture = save_bench(result, out)
    if as_json:
        print_json(result)
    else:
        print_bench(stdout(), result)
    typer.echo(f"wrote {figures} and {picture}", err=True)


@contextmanager
def _quick_imports() -> Iterator[None]:
    """Without garbage collection, which costs a quarter of the time that torch and transformers take to import."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _loaded_suite(name: str, model: str | None, max_new_tokens: int | None) -> LoadedSuite:
    from traitscope.suite.file import load_suite

    return load_suite(name).with_overrides(model=model, max_new_tokens=max_new_tokens)


def _refuse_both(device: str, devices: str | None) -> None:
    if devices is not None and device != "auto":
        raise InputError("--device and --devices: give one of them")


def _prepared(
    loaded: LoadedSuite,
    device: str,
    dtype: str,
    quantize: str | None,
    allow_foreign: bool,
    trust_remote_code: bool,
    devices: str | None = None,
) -> Prepared:
    with _quick_imports():
        from traitscope.run.prepare import prepare

        return prepare(
            loaded,
            device=device,
            devices=devices,
            dtype=dtype,
            quantize=quantize,
            allow_foreign=allow_foreign,
            trust_remote_code=trust_remote_code,
        )


def _start(
    prepared: Prepared,
    out: Path,
    *,
    batch_size: int | None,
    shard_size: int | None,
    allow_foreign: bool,
    retime: bool = False,
    compiled: bool | None = None,
    tracking: Tracking | None = None,
) -> Path:
    with _quick_imports():
        from traitscope.run.night import start_run
        from traitscope.run.prepare import check_writable
        from traitscope.run.progress import default_reporter

    check_writable(out)
    return start_run(
        prepared,
        out=out,
        batch_size=batch_size,
        shard_size=shard_size,
        allow_foreign=allow_foreign,
        reporter=default_reporter(),
        retime=retime,
        compiled=compiled,
        on_end=report_at_end,
        tracking=tracking,
    )


def _tracking(reference: str | None) -> Tracking:
    from traitscope.run.tracking import Tracking, find_tracker

    return Tracking(None if reference is None else find_tracker(reference))


def _resume(
    run_dir: Path,
    suite: str | None,
    model: str | None,
    max_new_tokens: int | None,
    device: str,
    devices: str | None,
    dtype: str,
    quantize: str | None,
    tracking: Tracking,
    *,
    retry_failed: bool,
    deep: bool,
) -> None:
    from traitscope.run.devices import choose_devices
    from traitscope.run.night import resume_run
    from traitscope.run.progress import default_reporter
    from traitscope.run.same_inputs import refuse_other_inputs

    chosen = choose_devices(devices) if devices is not None else ()
    refuse_other_inputs(
        run_dir,
        suite=suite,
        model=model,
        max_new_tokens=max_new_tokens,
        device=device,
        devices=chosen,
        dtype=dtype,
        quantize=quantize,
    )
    reporter = default_reporter()
    resume_run(
        run_dir,
        retry_failed=retry_failed,
        deep=deep,
        reporter=reporter,
        devices=chosen,
        tracking=tracking,
        on_end=report_at_end,
    )


def _finish(run_dir: Path, as_json: bool, tracking: Tracking | None = None) -> None:
    from traitscope.captures.summaries import run_summary, went_well
    from traitscope.report.terminal import print_summary
    from traitscope.run.shard_metrics import summary_metrics

    summary = run_summary(run_dir)
    if as_json:
        print_json(summary)
    else:
        print_summary(stdout(), summary)
    if tracking is not None:
        tracking.summary(lambda: summary_metrics(summary))
    if not went_well(summary):
        raise typer.Exit(1)


def _show_plan(prepared: Prepared, batch_size: int | None, as_json: bool) -> None:
    with _quick_imports():
        from traitscope.report.terminal import print_plan
        from traitscope.run.describe_plan import describe_plan

        described = describe_plan(prepared, batch_size, _DEFAULT_OUT)
    if as_json:
        print_json(described)
    else:
        print_plan(stdout(), described)


def _show_sizes(
    model: str | None, memory: str, dtype: str, quantize: str | None, trust_remote_code: bool, as_json: bool
) -> None:
    if model is None:
        raise InputError("--memory needs --model: a hub id, a directory or a configuration file")
    with _quick_imports():
        from traitscope.report.terminal import print_sizes
        from traitscope.run.sizing import describe_sizes

        described = describe_sizes(model, memory, dtype, quantize=quantize, trust_remote_code=trust_remote_code)
    if as_json:
        print_json(described)
    else:
        print_sizes(stdout(), described)


def _auto_or_number(option: str, value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isdigit() or int(value) < 1:
        raise InputError(f"{option} {value!r}: use auto or a whole number above 0")
    return int(value)


@app.command()
def explain(
    run_dir: RunDir,
    generation: Annotated[
        list[str] | None, typer.Option(help="Its id, the beginning of it, or experiment/prompt_id.", metavar="ID")
    ] = None,
    trait: Annotated[str | None, typer.Option(help="One of the run's traits.")] = None,
    position: Annotated[int | None, typer.Option(help="The token's position; negative: from the end.")] = None,
    top: Annotated[bool, typer.Option("--top", help="The response's token with the largest z (the default).")] = False,
    most: Annotated[int, typer.Option(min=1, help="How many blocks are named; a few heads and neurons in each.")] = 5,
    closure: Annotated[
        bool, typer.Option("--closure", help="Print instead how well all sums close, for every token and trait.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say which blocks, heads and neurons wrote a trait at a token."""
    if closure and (trait is not None or position is not None or top):
        raise InputError("explain: --closure checks every trait and token; leave out --trait, --position and --top")
    if closure:
        _show_closure(run_dir, generation, as_json)
        return
    if trait is None or not generation or len(generation) > 1:
        raise InputError("explain: give one --generation and one --trait, or --closure")
    if top and position is not None:
        raise InputError("explain: give --top or --position, not both")
    with _quick_imports():
        from traitscope.attribution.explanation import explain as explained
        from traitscope.report.explanation import print_explanation
        from traitscope.run.progress import default_reporter, stage

    reporter = default_reporter()
    show = stage(reporter, "replies")
    with reporter:
        found = explained(
            run_dir,
            generation[0],
            trait,
            position,
            most=most,
            on_progress=lambda n, of: show("opening neutral replies, once for this model", n, of),
        )
    if as_json:
        print_json(found.described())
    else:
        print_explanation(stdout(), found)


def _show_closure(run_dir: Path, generations: list[str] | None, as_json: bool) -> None:
    with _quick_imports():
        from traitscope.attribution.closure import check_closure
        from traitscope.report.explanation import print_closure
        from traitscope.run.progress import default_reporter, stage

    reporter = default_reporter()
    show = stage(reporter, "generations")
    with reporter:
        found = check_closure(run_dir, generations, on_progress=lambda n, of: show("splitting", n, of))
    if as_json:
        print_json(found.described())
    else:
        print_closure(stdout(), found)
    if not found.closed:
        raise typer.Exit(1)


@app.command()
def verify(
    run_dir: RunDir,
    sample: Annotated[int | None, typer.Option(min=1, help="Replay this many generations, not all.")] = None,
    deep: Annotated[bool, typer.Option(help="Check checksums, not only sizes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prove a run's numbers by replaying its generations another way."""
    with _quick_imports():
        from traitscope.report.verification import print_verdict
        from traitscope.run.progress import default_reporter, stage
        from traitscope.run.reload import model_of_run
        from traitscope.verify.stored import check_stored
        from traitscope.verify.verdict import verdict_without_replay, verify_stored

    reporter = default_reporter()
    reporter.say("checking the stored tables")
    stored = check_stored(run_dir, deep=deep)
    verdict = verdict_without_replay(stored, deep=deep)
    if verdict.passed and verdict.captured:
        reporter.say(f"loading {stored.plan['model']['name']}")
        model = model_of_run(run_dir)
        show = stage(reporter, "generations")
        with reporter:
            verdict = verify_stored(
                stored, model, sample=sample, deep=deep, on_progress=lambda n, of: show("replaying", n, of)
            )
    if as_json:
        print_json(verdict.described())
    else:
        print_verdict(stdout(), verdict.described())
    if not verdict.passed:
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of suite files, for editors."""
    from traitscope.suite.file import suite_schema

    print_json(suite_schema())


def main() -> None:
    """Run the command line; errors that a user can mend are one line on stderr."""
    warnings = logging.StreamHandler(sys.stderr)
    warnings.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("traitscope").handlers = [warnings]
    try:
        app()
    except TraitscopeError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        sys.exit(stop.exit_code)
