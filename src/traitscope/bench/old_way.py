"""The old way, as a process: load a model for one prompt and one trait, recompute the context for each token.

``python -m traitscope.bench.old_way JOB.json`` reads its job and writes ``job["report"]``. It is written as such
scripts are: transformers and numpy, no KV cache, attention weights and hidden states of all layers copied out, one
layer projected on one vector. Nothing of traitscope is used but the peak of memory.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from traitscope.memory import peak_resident_bytes


def main(job_file: str) -> None:
    """Do the job; the report holds seconds of import, load and compute, and bytes of peak memory."""
    job = json.loads(Path(job_file).read_text())
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    imported = time.time()
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"], **job["arguments"])
    model = AutoModelForCausalLM.from_pretrained(
        job["weights"], dtype=job["dtype"], attn_implementation="eager", **job["arguments"]
    )
    model = model.eval().to(job["device"])
    vector = np.array(job["vector"], dtype=np.float32)
    loaded = time.time()

    token_ids = list(job["prompt_ids"])
    scores = np.empty(0, dtype=np.float32)
    with torch.no_grad():
        for _ in range(job["max_new_tokens"]):
            output = model(
                input_ids=torch.tensor([token_ids], device=job["device"]),
                use_cache=False,
                output_attentions=True,
                output_hidden_states=True,
            )
            _copied_out(output.attentions)
            hidden_states = _copied_out(output.hidden_states)
            scores = hidden_states[job["layer"] + 1][0] @ vector
            token_ids.append(int(output.logits[0, -1].argmax()))
    response = tokenizer.decode(token_ids[len(job["prompt_ids"]) :])
    Path(job["result"]).write_text(json.dumps({"response": response, "scores": scores.tolist()}))
    report = {
        "import": imported - job["started"],
        "load": loaded - imported,
        "compute": time.time() - loaded,
        "response_tokens": len(token_ids) - len(job["prompt_ids"]),
        "peak_bytes": peak_resident_bytes(),
    }
    Path(job["report"]).write_text(json.dumps(report))


def _copied_out(tensors: Any) -> list[Any]:
    import numpy as np

    return [np.array(tensor.float().cpu()) for tensor in tensors if tensor is not None]


if __name__ == "__main__":
    main(sys.argv[1])
