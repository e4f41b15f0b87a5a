"""Throughput of a recipe on this node, by the name that Megatron users look for: `davinci bench train`.

python tools/benchmark_throughput.py recipe.yaml --ranks 8 --grid megatron.tensor_model_parallel_size=2,4,8 --out h100
"""

import sys

from megatron_davinci.cli.app import app, run_and_exit

if __name__ == "__main__":
    run_and_exit(app, "bench", "train", *sys.argv[1:])
