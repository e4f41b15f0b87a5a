"""Tasks as one file that other tools read."""

from pathlib import Path

import orjson

from data_prep.environments.collection import TaskCollection
from data_prep.io.files import new_file

_LISTS = ("FAIL_TO_PASS", "PASS_TO_PASS")


def export_tasks(envs: Path, out: Path, lists_as_text: bool) -> int:
    """Write all tasks as JSON Lines with SWE-bench's and SWE-rebench's fields; returns how many there are.

    `lists_as_text`: lists of tests as JSON text, as SWE-bench has them, and not as lists. Raises InputError.
    """
    collection, count = TaskCollection(envs), 0
    with new_file(out) as part, part.open("wb") as file:
        for task in collection.tasks():
            row = task.to_json()
            if lists_as_text:
                row |= {name: orjson.dumps(row[name]).decode() for name in _LISTS}
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count
