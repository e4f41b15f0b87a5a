"""Loaded by pytest with -p: writes the outcome of every test, and of the session, to a file, each line signed.

Lies outside the checkout, read-only. Python 3.6 and pytest 3 on. The key comes by standard input, and is in no
environment; a line is signed together with all lines before it. A pytest that a test starts finds no DAVINCI_REPORT,
and is not reported. The hooks hold what they need themselves: nothing of this module is looked up when they run.
"""

import hashlib
import hmac
import json
import os
import sys


def _hooks():
    report = os.environ.pop("DAVINCI_REPORT", None)
    os.environ.pop("PYTEST_ADDOPTS", None)
    if report is None:
        return {}
    key = sys.stdin.buffer.readline().strip()
    sink = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    state = hmac.new(key, b"", hashlib.sha256)
    dumps, write = json.dumps, os.write

    def put(**record):
        line = dumps(record, sort_keys=True).encode()
        state.update(line)
        write(sink, line + b"\t" + state.hexdigest().encode() + b"\n")

    def pytest_runtest_logreport(report):
        outcome = report.outcome
        if hasattr(report, "wasxfail"):
            outcome = "xfailed" if report.skipped else "xpassed"
        elif report.when != "call" and outcome == "failed":
            outcome = "error"
        if report.when == "call" or outcome != "passed":
            put(id=report.nodeid, outcome=outcome)

    def pytest_collectreport(report):
        if report.failed:
            put(id=report.nodeid, outcome="collection error")

    def pytest_sessionfinish(session, exitstatus):
        put(end=int(exitstatus))

    return {hook.__name__: hook for hook in (pytest_runtest_logreport, pytest_collectreport, pytest_sessionfinish)}


globals().update(_hooks())
