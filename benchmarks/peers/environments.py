"""One virtual environment a peer, made once for each set of pins."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from traitscope.errors import RunError

_HERE = Path(__file__).resolve().parent
_CONSTRAINTS = _HERE.parents[1] / "constraints.txt"
_DONE = ".installed"


def python_of_peer(peer: str, environments: Path) -> Path:
    """The interpreter of the environment that ``requirements/<peer>.txt`` describes; installed at need.

    Raises:
        RunError: it cannot be installed; names pip's reason and its log.
    """
    requirements = _HERE / "requirements" / f"{peer}.txt"
    folder = environments / f"{peer}-{_pins_hash(requirements)}"
    python = folder / "bin" / "python"
    if not (folder / _DONE).exists():
        print(f"installing the environment of {peer}", file=sys.stderr, flush=True)
        _install(peer, requirements, folder, python)
    return python


def _pins_hash(requirements: Path) -> str:
    pins = requirements.read_bytes() + _CONSTRAINTS.read_bytes() + sys.version.encode()
    return hashlib.sha256(pins).hexdigest()[:12]


def _install(peer: str, requirements: Path, folder: Path, python: Path) -> None:
    try:
        venv.create(folder, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RunError(f"peer {peer}: its environment cannot be made in {folder}: {error}") from error
    torch = next(line for line in requirements.read_text().splitlines() if line.startswith("torch=="))
    # torch first and alone: whatever a peer asks for, no other build of it is fetched
    for wanted in ([torch], ["-r", str(requirements)]):
        _pip_install(peer, [*wanted, "-c", str(_CONSTRAINTS)], python, folder / "pip.log")
    (folder / _DONE).touch()


def _pip_install(peer: str, arguments: list[str], python: Path, log: Path) -> None:
    with log.open("a") as stream:
        finished = subprocess.run([python, "-m", "pip", "install", *arguments], stdout=stream, stderr=stream)
    if finished.returncode != 0:
        errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with {finished.returncode}"
        raise RunError(
            f"peer {peer}: its environment cannot be installed: {reason}; see {log}, or leave it out with --peers"
        )
