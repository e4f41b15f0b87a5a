"""Megatron-LM's tools/checkpoint/convert.py, by its flags, for Hugging Face and torch_dist checkpoints.

python tools/convert_checkpoint.py --model-type GPT --loader hf --saver torch_dist --load-dir HF --save-dir OUT
python tools/convert_checkpoint.py --model-type GPT --loader torch_dist --saver hf --load-dir RUN --save-dir HF

The work is done by `davinci convert`, which needs no number of ranks: a torch_dist checkpoint loads in any layout. What
it writes for Megatron-LM lies where its --load looks: OUT/release, which OUT's tracker file names.
"""

import argparse
from pathlib import Path

from data_prep import InputError
from data_prep.io.exit_codes import exit_on_mistake
from data_prep.io.files import PART, refuse_occupied
from megatron_davinci.weights.conversion import ConversionOptions
from megatron_davinci.weights.paths import TRACKER
from megatron_davinci.weights.to_huggingface import export_to_hf
from megatron_davinci.weights.to_megatron import import_from_hf

# Megatron-LM's own names for the same forms beside ours.
_HUGGING_FACE = ("hf", "llama_mistral", "saver_hf")
_TORCH_DIST = ("torch_dist", "core", "mcore", "megatron")
_NO_EFFECT = ("--target-tensor-parallel-size", "--target-pipeline-parallel-size", "--max-queue-size",
              "--checkpoint-type", "--model-size", "--megatron-path", "--saver-transformer-impl")  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    """The flags that Megatron users know; those that no longer matter are accepted and said to have no effect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-type", required=True, choices=["GPT"], help="decoder-only models")
    forms = [*_HUGGING_FACE, *_TORCH_DIST]
    parser.add_argument("--loader", default="megatron", choices=forms, help="form of --load-dir")
    parser.add_argument("--saver", default="megatron", choices=forms, help="form of --save-dir")
    parser.add_argument("--load-dir", required=True, type=Path, help="directory to read")
    parser.add_argument("--save-dir", required=True, type=Path, help="directory to make")
    parser.add_argument("--tokenizer-model", type=Path, help="tokenizer's directory, where the checkpoint has none")
    parser.add_argument(
        "--hf-model", help="preset or Hugging Face directory that says what the model is, where the checkpoint does not"
    )
    types = parser.add_mutually_exclusive_group()
    types.add_argument("--bf16", action="store_const", dest="dtype", const="bf16", help="write bf16")
    types.add_argument("--fp16", action="store_const", dest="dtype", const="fp16", help="write fp16")
    for flag in _NO_EFFECT:
        parser.add_argument(
            flag, help="no effect: torch_dist loads in any layout, the model says what it is, and nothing waits"
        )
    parser.add_argument("--no-checking", action="store_true", help="no effect: names and shapes are always checked")
    return parser.parse_args()


def main() -> None:
    """Run one conversion; a mistake of the user is one sentence and exit code 2."""
    arguments = parse_arguments()
    to_hf = arguments.saver in _HUGGING_FACE
    if to_hf == (arguments.loader in _HUGGING_FACE):
        raise InputError(
            f"--loader {arguments.loader} and --saver {arguments.saver} are the same form: one must be hf, the other "
            "torch_dist"
        )
    if to_hf:
        how, model = ConversionOptions(arguments.dtype), arguments.hf_model
        export_to_hf(arguments.load_dir, arguments.save_dir, arguments.tokenizer_model, how, model)
    else:
        convert_for_load(arguments.load_dir, arguments.save_dir, ConversionOptions(arguments.dtype))


def convert_for_load(source: Path, out: Path, how: ConversionOptions) -> None:
    """OUT/release, then the tracker file; killed, it goes on with what it has left there itself."""
    begun = f"release{PART}"
    if not (out.is_dir() and all(path.name.startswith(begun) for path in out.iterdir())):
        refuse_occupied(out)
    import_from_hf(source, out / "release", how)
    (out / TRACKER).write_text("release")


if __name__ == "__main__":
    with exit_on_mistake():
        main()
