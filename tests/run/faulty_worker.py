"""``traitscope.run.worker`` with a fault in its engine, named by the environment's ``FAULT``.

``dies``: killed by a prompt of number 5 each time, and once by one of number 9. ``wrong``: scores of another
checkpoint. ``slow``: takes its time.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from traitscope.run import engine as engine_module
from traitscope.run import worker

_real = engine_module.decode


def _dying(model: Any, prompts: Any, **kwargs: Any) -> Any:
    texts = [model.tokenizer.decode(prompt) for prompt in prompts]
    mark = Path(sys.argv[1]) / "died-once"
    if any("number 5 " in text for text in texts) or (any("number 9 " in text for text in texts) and not mark.exists()):
        if any("number 9 " in text for text in texts):
            mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return _real(model, prompts, **kwargs)


def _wrong(*args: Any, **kwargs: Any) -> Any:
    rows = _real(*args, **kwargs)
    for row in rows:
        row.trace.scores[:] = np.roll(row.trace.scores, 1, axis=0)
    return rows


def _slow(*args: Any, **kwargs: Any) -> Any:
    time.sleep(0.3)
    return _real(*args, **kwargs)


engine_module.decode = {"dies": _dying, "wrong": _wrong, "slow": _slow}[os.environ["FAULT"]]
os._exit(worker.main(sys.argv[1:]))
