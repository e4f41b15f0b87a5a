from data_prep import InputError as InputError
from data_prep import WorkFailed as WorkFailed
from data_prep.corpus import Corpus as Corpus
from data_prep.corpus import PackPlan as PackPlan
from data_prep.corpus import load_plan as load_plan
from data_prep.corpus import pack_documents as pack_documents
from data_prep.corpus import save_plan as save_plan
from data_prep.sources.collect import collect_git as collect_git
from data_prep.tokenize.tokenize import TokenizeJob as TokenizeJob
from data_prep.tokenize.tokenize import tokenize as tokenize
from data_prep.tokenizers import load_tokenizer as load_tokenizer
from megatron_davinci.config import Recipe as Recipe
from megatron_davinci.config import dump_recipe as dump_recipe
from megatron_davinci.config import load_recipe as load_recipe
from megatron_davinci.config import parse_recipe as parse_recipe
from megatron_davinci.models.config import load_model_config as load_model_config
from megatron_davinci.plan.describe import make_plan as make_plan
from megatron_davinci.plan.devices import find_device as find_device
from megatron_davinci.report.metrics_file import read_metrics as read_metrics
from megatron_davinci.report.write import write_report as write_report
from megatron_davinci.train.dry_run import describe_run as describe_run
from megatron_davinci.train.loop import train as train_recipe
from megatron_davinci.weights.compare import differences as differences
from megatron_davinci.weights.conversion import ConversionOptions as ConversionOptions
from megatron_davinci.weights.to_huggingface import export_to_hf as export_to_hf
from megatron_davinci.weights.to_megatron import import_from_hf as import_from_hf

__version__: str
__all__ = [  # mypy: what an import of another name makes public
    "train_recipe",
]
