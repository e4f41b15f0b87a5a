"""The `davinci` command: typer alone. Nothing else imports this package."""

import sys


def main() -> None:
    """Entry point of the console script; Ctrl-C while it loads is no traceback either."""
    try:
        from megatron_davinci.cli.app import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()
