"""From git histories to packed token sequences. CPU only; nothing here imports torch."""

from data_prep.corpus.indexed import Corpus, CorpusWriter
from data_prep.corpus.packing import PackPlan, pack_documents
from data_prep.errors import InputError
from data_prep.sample import Sample

__all__ = ["Corpus", "CorpusWriter", "InputError", "PackPlan", "Sample", "pack_documents"]
