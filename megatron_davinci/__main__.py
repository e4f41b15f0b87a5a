"""`torchrun ... -m megatron_davinci COMMAND ...`: the `davinci` command on many ranks."""

from megatron_davinci.cli import main

if __name__ == "__main__":
    main()
