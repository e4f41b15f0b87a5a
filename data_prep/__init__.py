"""From git histories to packed token sequences. CPU only; nothing here imports torch.

Public names: InputError and Sample here; Corpus, PackPlan and what makes them in data_prep.corpus.
"""

from data_prep.errors import InputError
from data_prep.sample import Sample

__all__ = ["InputError", "Sample"]
