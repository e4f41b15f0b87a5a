"""From git histories to packed token sequences. CPU only; nothing here imports torch.

Public: InputError, WorkFailed and Sample here; data_prep.corpus; data_prep.files; collect_git and build_samples in
data_prep.pull_request.build; tokenize in data_prep.corpus.tokenize.
"""

from data_prep.errors import InputError, WorkFailed
from data_prep.sample import Sample

__all__ = ["InputError", "Sample", "WorkFailed"]
