"""`torchrun ... -m megatron_davinci.train RECIPE [key=value ...]`: the same as `davinci train`, on many ranks."""

import sys

from megatron_davinci.cli import app, run_and_exit

if __name__ == "__main__":  # Megatron's checkpoint writer starts processes that import this module again
    run_and_exit(app, "train", *sys.argv[1:])
