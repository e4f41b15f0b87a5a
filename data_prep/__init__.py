"""From git histories to packed token sequences. CPU only; nothing here imports torch.

Packages from the lowest up, each of which imports only those before it: io, tokenizers, corpus, tokenize, leakage,
changes, sources, reconstruct, samples, pipeline, cli.
"""

from data_prep.io.errors import InputError, WorkFailed
from data_prep.samples.sample import Sample

__all__ = ["InputError", "Sample", "WorkFailed"]
