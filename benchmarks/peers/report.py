"""The comparison as a section of a page: table, versions, machine and command."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from agreement import Agreement
from contenders import Contender
from ways import Way
from workload import Workload

_TITLES = {"reference": "## Beside its peers", "ragged": "## Beside its peers, on ragged prompts"}
_PAGE_TITLE = "# Performance\n\n"
_HEAD = (
    "| | width, order | seconds | generate = 1 | traitscope = 1 | tokens/s | peak memory | captured |\n"
    "|---|---|---|---|---|---|---|---|"
)


@dataclass
class Measured:
    """What one contender did in the ``way`` that was its fastest of those ``tried``.

    ``tried`` has the seconds of each, ``seconds`` has one entry a round; the reference agrees with nothing but itself.
    """

    contender: Contender
    versions: dict[str, str]
    agreement: Agreement | None
    way: Way
    tried: dict[Way, float]
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def checked(self) -> str:
        """What was found out before the timed rounds."""
        agreed = [str(self.agreement)] if self.agreement else []
        return "; ".join([*agreed, *(f"{seconds:.2f} s at {way}" for way, seconds in self.tried.items())])


@dataclass(frozen=True)
class Setting:
    """Where, when and on what work (of the workload's ``name``) a comparison was made."""

    name: str
    work: str
    machine: str
    made: str
    command: str
    n_response_tokens: int

    @classmethod
    def here(cls, workload: Workload, threads: int, command: str) -> Setting:
        n_traits, n_checkpoints, _ = workload.readers.shape
        work = (
            f"Prompts: {workload.described}. {len(workload.prompts)} prompts of {workload.n_prompt_tokens} tokens, "
            f"{workload.n_response_tokens} new tokens, greedy, end-of-sequence tokens off, SmolLM2-135M-Instruct in "
            f"float32; a score of each token at {n_checkpoints} checkpoints for {n_traits} traits (random unit "
            "vectors). A batch of `generate` ends with its longest response; what shorter ones generate meanwhile is "
            "dropped. Model loads are not counted, nor are files: traitscope's decode loop stands beside the peers', "
            "not its run directory."
        )
        machine = (
            f"{_processor()}, torch on {threads} of {os.cpu_count()} cores, {platform.system()}, "
            f"Python {platform.python_version()}"
        )
        return cls(workload.name, work, machine, f"{datetime.now(UTC):%Y-%m-%d}", command, workload.n_response_tokens)


def section(measured: Sequence[Measured], setting: Setting, *, reference: str, unit: str) -> str:
    """Markdown. Ratios are medians of the ratios of each round, with the smallest and the largest."""
    seconds = {entry.contender.name: entry.seconds for entry in measured}
    rows = [_row(entry, seconds[reference], seconds[unit], setting.n_response_tokens) for entry in measured]
    n_rounds = len(measured[0].seconds)
    return "\n".join(
        [
            _TITLES[setting.name],
            "",
            setting.work,
            "",
            _HEAD,
            *rows,
            "",
            f"Medians of {n_rounds} interleaved rounds in one run, smallest and largest in brackets; ratios are "
            "paired by round. Each contender ran in the way that was its fastest of those tried. A peer with a "
            "capture generates one token more, so that the last one asked for is read as well. Peak memory is the "
            "process's, its libraries and weights included.",
            "",
            f"Versions, agreement with {reference}, which was checked before the timed rounds, and ways tried:",
            "",
            *(_contender_line(entry) for entry in measured),
            "",
            f"Made on {setting.made} ({setting.machine}) by:",
            "",
            f"```\n{setting.command}\n```",
        ]
    )


def write_section(page: Path, workload: str, text: str) -> None:
    """Put a workload's section into the page between its marks, or at its end where it has none yet."""
    begin, end = f"<!-- peers {workload}: begin -->", f"<!-- peers {workload}: end -->"
    marked = f"{begin}\n{text}\n{end}\n"
    existing = page.read_text() if page.exists() else _PAGE_TITLE
    before, found, rest = existing.partition(begin)
    after = rest.partition(f"{end}\n")[2] if found else ""
    page.write_text(f"{before.rstrip()}\n\n{marked}{after}")


def _row(entry: Measured, reference: Sequence[float], unit: Sequence[float], n_response_tokens: int) -> str:
    cells = [
        entry.contender.name,
        str(entry.way),
        _spread(entry.seconds),
        _spread(_ratios(entry.seconds, unit)),
        _spread(_ratios(entry.seconds, reference)),
        f"{n_response_tokens / median(entry.seconds):.0f}",
        f"{entry.peak_bytes / 1e9:.2f} GB",
        entry.contender.captured,
    ]
    return f"| {' | '.join(cells)} |"


def _contender_line(entry: Measured) -> str:
    name = entry.contender.name
    versions = ", ".join(f"{package} {version}" for package, version in entry.versions.items())
    return f"- {name} ({versions}): {entry.checked}"


def _ratios(seconds: Sequence[float], others: Sequence[float]) -> list[float]:
    return [own / other for own, other in zip(seconds, others, strict=True)]


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
