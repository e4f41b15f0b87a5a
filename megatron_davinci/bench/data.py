"""Speed of the data's way: text to tokens to packed sequences. Torch-free."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.corpus import Corpus, pack_documents
from data_prep.tokenize.inputs import expand
from data_prep.tokenize.tokenize import TokenizeJob, tokenize


def measure_data(inputs: Sequence[str], tokenizer: Path, seq_length: int, workers: int) -> dict[str, Any]:
    """Tokenize and pack into a folder that goes again; megabytes are those of the files read."""
    size = sum(path.stat().st_size for path in expand(list(inputs)))
    with tempfile.TemporaryDirectory() as name:
        prefix = Path(name) / "corpus"
        started = time.perf_counter()
        job = TokenizeJob(tuple(inputs), tokenizer, {"text": prefix}, append_eod=True, workers=workers)
        manifest = tokenize(job)["text"]
        tokenized = time.perf_counter()
        plan = pack_documents(Corpus(prefix).lengths, seq_length, "split")
        packed = time.perf_counter()
    seconds = tokenized - started
    return {
        "files_megabytes": size / 1e6,
        "documents": manifest["documents"],
        "tokens": manifest["tokens"],
        "tokenize_seconds": seconds,
        "tokenize_megabytes_per_second": size / 1e6 / seconds,
        "tokenize_tokens_per_second": manifest["tokens"] / seconds,
        "pack_seconds": packed - tokenized,
        "pack_documents_per_second": manifest["documents"] / (packed - tokenized),
        "filled": plan.efficiency,
    }
