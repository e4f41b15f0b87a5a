"""`davinci data ...`: the commands of this package, by group. Heavy imports happen inside the commands."""

from data_prep.cli import corpora, environments, leakage, packing, pull_requests, tokenizing  # noqa: F401, they add their commands
from data_prep.cli.app import app

__all__ = ["app"]
