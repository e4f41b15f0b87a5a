"""Tools for tests that run real processes."""

from megatron_davinci.testing.ranks import run_on_ranks

__all__ = ["run_on_ranks"]
