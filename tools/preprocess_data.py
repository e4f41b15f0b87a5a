"""Megatron-LM's preprocess_data.py, by its flags and output names; the work is done by `davinci data tokenize`.

python tools/preprocess_data.py --input corpus.jsonl --output-prefix out/corpus --tokenizer-type HuggingFaceTokenizer \
    --tokenizer-model path/to/tokenizer --append-eod --workers 8
"""

import argparse
import os
from pathlib import Path

from data_prep import InputError
from data_prep.io.exit_codes import exit_on_mistake
from data_prep.io.progress import counter
from data_prep.io.summary import print_summary
from data_prep.tokenize.summary import corpus_facts, warn_of_records
from data_prep.tokenize.tokenize import TokenizeJob, tokenize

_TOKENIZER_TYPES = ("HuggingFaceTokenizer", "TikTokenizer", "SentencePieceTokenizer", "Llama2Tokenizer")


def parse_arguments() -> argparse.Namespace:
    """The flags that Megatron users know; those that no longer matter are accepted and said to have no effect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="JSON Lines file, or a pattern in quotes")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="fields to extract")
    parser.add_argument("--output-prefix", required=True, type=Path, help="PREFIX of PREFIX_KEY_document.bin and .idx")
    parser.add_argument("--tokenizer-type", choices=_TOKENIZER_TYPES, help="told from the file itself")
    parser.add_argument("--tokenizer-model", required=True, type=Path, help="tokenizer directory or file")
    parser.add_argument("--append-eod", action="store_true", help="end each document with the EOD token")
    parser.add_argument("--split-sentences", action="store_true", help="a sequence per sentence")
    parser.add_argument("--keep-newlines", action="store_true", help="keep the white space between sentences")
    parser.add_argument("--lang", default="english", help="Punkt's language: NLTK_DATA/tokenizers/punkt_tab/LANG")
    parser.add_argument("--workers", required=True, type=int, help="processes that encode")
    for flag in ("--partitions", "--log-interval"):
        parser.add_argument(flag, type=int, help="no effect: one stream is as fast, and its memory does not grow")
    parser.add_argument("--keep-sequential-samples", action="store_true", help="no effect: the order is always kept")
    return parser.parse_args()


def main() -> None:
    """Run one job; a mistake of the user is one sentence and exit code 2."""
    arguments = parse_arguments()
    level = "sentence" if arguments.split_sentences else "document"
    prefix: Path = arguments.output_prefix
    job = TokenizeJob(
        inputs=(arguments.input,),
        tokenizer=arguments.tokenizer_model,
        outputs={key: prefix.with_name(f"{prefix.name}_{key}_{level}") for key in arguments.json_keys},
        append_eod=arguments.append_eod,
        split_sentences=arguments.split_sentences,
        punkt=installed_punkt(arguments.lang) if arguments.split_sentences else None,
        keep_space=arguments.keep_newlines,
        strict=True,
        workers=arguments.workers,
    )
    with counter("documents") as advance:
        manifests = tokenize(job, advance)
    for key, manifest in manifests.items():
        warn_of_records(manifest["provenance"])
        print_summary({"corpus": str(job.outputs[key]), **corpus_facts(manifest)})


def installed_punkt(language: str) -> Path | None:
    """The Punkt model below NLTK_DATA, where Megatron looks for it; None, to learn one, where that is not set."""
    data = os.environ.get("NLTK_DATA")
    if data is None and language != "english":
        raise InputError(f"--lang is {language}: set NLTK_DATA to where its punkt_tab lies")
    return Path(data) / "tokenizers" / "punkt_tab" / language if data else None


if __name__ == "__main__":
    with exit_on_mistake():
        main()
