"""The unit: transformers' batched ``generate`` with its defaults, nothing captured."""

from __future__ import annotations

from functools import partial

from batch import load_transformers, plainly_generated
from serving import Session, serve
from workload import Workload


def load(workload: Workload) -> Session:
    return Session(partial(plainly_generated, load_transformers(workload)), (), ("torch", "transformers"))


if __name__ == "__main__":
    serve(load)
