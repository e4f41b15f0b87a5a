"""Tokens on disk: tokenizers, indexed datasets, packing."""

from data_prep.corpus.entropy import Annotation, AnnotationWriter
from data_prep.corpus.indexed import Corpus
from data_prep.corpus.packing import LongDocuments, PackPlan, load_plan, pack_documents, save_plan
from data_prep.corpus.tokenizers import QWEN_PATTERN, load_tokenizer, tokenizer_file, tokenizer_fingerprint
from data_prep.corpus.writer import CorpusWriter

__all__ = [
    "QWEN_PATTERN",
    "Annotation",
    "AnnotationWriter",
    "Corpus",
    "CorpusWriter",
    "LongDocuments",
    "PackPlan",
    "load_plan",
    "load_tokenizer",
    "pack_documents",
    "save_plan",
    "tokenizer_file",
    "tokenizer_fingerprint",
]
