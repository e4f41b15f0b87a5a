"""The `davinci` command: typer alone. Nothing else imports this package."""

from megatron_davinci.cli.app import app, main

__all__ = ["app", "main"]
