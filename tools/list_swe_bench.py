"""Write data_prep/changes/swe_bench_verified.json, numbers and base commits, from the benchmark's Parquet file.

python tools/list_swe_bench.py SWE-bench_Verified_test.parquet
"""

import sys
from pathlib import Path

from pyarrow.parquet import read_table

from data_prep.io.files import write_json

TARGET = Path(__file__).parents[1] / "data_prep" / "changes" / "swe_bench_verified.json"


def main() -> None:
    """Read the file, write the list."""
    rows = read_table(sys.argv[1], columns=["repo", "instance_id", "base_commit"]).to_pylist()
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        found.setdefault(row["repo"], {})[row["instance_id"].rpartition("-")[2]] = row["base_commit"]
    write_json(TARGET, {repository: dict(sorted(found[repository].items())) for repository in sorted(found)})


if __name__ == "__main__":
    main()
