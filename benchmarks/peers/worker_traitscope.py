"""traitscope's own decode loop: scores at every checkpoint, and with them norms and the writes at a readout."""

from __future__ import annotations

from own import bank_of, decoded, load_own
from serving import Row, Session, serve
from ways import Way
from workload import Workload


def load(workload: Workload) -> Session:
    model, bank = load_own(), bank_of(workload)

    def generate(workload: Workload, way: Way) -> list[Row]:
        rows = decoded(model, workload, way.width, bank)
        return [Row(row.response_ids, row.trace.scores, row.trace.norms) for row in rows]

    return Session(generate, range(len(workload.checkpoints)), ("traitscope", "torch", "transformers"))


if __name__ == "__main__":
    serve(load)
