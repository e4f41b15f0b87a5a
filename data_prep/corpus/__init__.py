"""Tokens on disk: indexed datasets, annotations, packing."""

from data_prep.corpus.annotation import Annotation, AnnotationWriter
from data_prep.corpus.indexed import Corpus
from data_prep.corpus.packing import LongDocuments, PackPlan, joined_plans, load_plan, pack_documents, save_plan
from data_prep.corpus.writer import CorpusWriter

__all__ = [
    "Annotation",
    "AnnotationWriter",
    "Corpus",
    "CorpusWriter",
    "LongDocuments",
    "PackPlan",
    "joined_plans",
    "load_plan",
    "pack_documents",
    "save_plan",
]
