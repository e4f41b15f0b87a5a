"""Tasks in environments where tests really run: built from merged pull requests, judged by rules."""
