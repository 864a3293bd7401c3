"""What a coordinator and its workers say to each other: jobs one way, reports the other; plain values, never tensors.

Each is one line of JSON, so that a worker can be at the other end of a pipe or of a cluster engine's queue.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ShardJob:
    """Generate a shard and commit it; ``figures``: a tracker wants to be told of it."""

    shard: int
    figures: bool = False


@dataclass(frozen=True)
class CommitJob:
    """Commit the shard that is being written beside the next one, as no next one comes."""


@dataclass(frozen=True)
class VerifyJob:
    """Prove ``sample`` generations of the run."""

    sample: int


@dataclass(frozen=True)
class SplitJob:
    """Keep who wrote the traits in the open layers."""


@dataclass(frozen=True)
class UtilisationJob:
    """Say how much of the machine was used by ``work`` (``ForwardWork`` as a mapping), and what would be faster.

    ``generating_seconds`` are summed over workers, ``wall_seconds`` are the clock's.
    """

    work: Mapping[str, float]
    generated_tokens: int
    generating_seconds: float
    wall_seconds: float


Job = ShardJob | CommitJob | VerifyJob | SplitJob | UtilisationJob


@dataclass(frozen=True)
class WorkerStarted:
    """A process was started for a device; it has no model yet."""

    device: str
    pid: int


@dataclass(frozen=True)
class ModelLoaded:
    """A worker has its model, which took ``seconds``."""

    seconds: float


@dataclass(frozen=True)
class Tokens:
    """``count`` more tokens were generated in the batch in hand of a shard."""

    shard: int
    count: int


@dataclass(frozen=True)
class BatchDone:
    """A batch of a shard is finished: ``work`` tokens of longest responses, however early they ended."""

    shard: int
    work: int


@dataclass(frozen=True)
class ShardCost:
    """What a shard took: seconds, tokens, forward passes (``ForwardWork`` as a mapping), and its process's peaks."""

    generating_seconds: float = 0.0
    writing_seconds: float = 0.0
    generated_tokens: int = 0
    work: Mapping[str, float] | None = None
    peak_memory_bytes: int = 0
    peak_device_memory_bytes: int | None = None


@dataclass(frozen=True)
class Committed:
    """A shard is on disk. ``statuses`` and ``errors`` (of those that failed) are by generation; ``cost`` is a
    ``ShardCost`` as a mapping; ``figures`` are a tracker's, of this shard alone."""

    shard: int
    statuses: Mapping[str, str]
    errors: Mapping[str, str]
    cost: Mapping[str, Any]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Progressed:
    """``done`` of ``total`` generations of a job that is no shard."""

    done: int
    total: int


@dataclass(frozen=True)
class Verified:
    """``verdict`` is a ``Verdict`` as a mapping; else ``problem`` says why there is none."""

    verdict: Mapping[str, Any] | None
    problem: str | None = None


@dataclass(frozen=True)
class LayersSplit:
    """The open layers are split up, unless there was a ``problem``."""

    problem: str | None = None


@dataclass(frozen=True)
class Utilised:
    """``used`` is a ``Utilisation`` as a mapping, or None if nothing was generated."""

    used: Mapping[str, Any] | None


@dataclass(frozen=True)
class Held:
    """Memory that a worker holds now, in bytes by name."""

    held: Mapping[str, int]


@dataclass(frozen=True)
class Ready:
    """The worker waits for its next job."""


@dataclass(frozen=True)
class Refused:
    """The run cannot go on, whichever worker tries: a full disk, or (``is_input``) another model than the run's."""

    message: str
    is_input: bool


@dataclass(frozen=True)
class Ending:
    """The worker ends on an error of its own."""

    why: str


@dataclass(frozen=True)
class WorkerLost:
    """A worker ended before its time; ``shards`` that it had in hand are run again."""

    device: str
    pid: int
    why: str
    shards: tuple[int, ...]


@dataclass(frozen=True)
class JobGivenUp:
    """A job that ended its worker twice is not tried a third time."""

    job: Job
    why: str


@dataclass(frozen=True)
class DeviceGivenUp:
    """Workers on a device ended again and again without finishing anything; it gets no further one."""

    device: str
    why: str


Report = (
    WorkerStarted
    | ModelLoaded
    | Tokens
    | BatchDone
    | Committed
    | Progressed
    | Verified
    | LayersSplit
    | Utilised
    | Held
    | Ready
    | Refused
    | Ending
    | WorkerLost
    | JobGivenUp
    | DeviceGivenUp
)
Tell = Callable[[Report], None]

_KINDS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind
    for kind in (
        *(ShardJob, CommitJob, VerifyJob, SplitJob, UtilisationJob),
        *(ModelLoaded, Tokens, BatchDone, Committed, Progressed, Verified, LayersSplit, Utilised),
        *(Held, Ready, Refused, Ending),
    )
}


def to_line(message: Job | Report) -> str:
    """A message as one line of JSON, with its end."""
    return json.dumps({"kind": type(message).__name__, **asdict(message)}, ensure_ascii=True) + "\n"


def from_line(line: str) -> Any:
    """The message of a line.

    Raises:
        ValueError: it is none.
    """
    try:
        values = json.loads(line)
        return _KINDS[values.pop("kind")](**values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no message: {line!r}") from error
