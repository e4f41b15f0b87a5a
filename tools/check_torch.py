"""Whether the installed torch is a release that is pinned: `python tools/check_torch.py`.

torch is pinned by version alone, because each kind of machine has its own build. What all builds of a release share is
the commit that they were made from.
"""

import re
import sys
from importlib.metadata import version
from pathlib import Path

COMMIT_OF = {
    "2.13.0": "cf30153c4c131c8164ee7798e5022d810682e2cb",
    "2.11.0": "70d99e998b4955e0049d13a98d77ae1b14db1f45",
}
_PINS = Path(__file__).parents[1] / "requirements" / "torch.txt"


def main() -> None:
    """Exit with a sentence where it is another one."""
    pinned = re.findall(r"^torch==(\S+)", _PINS.read_text(), re.MULTILINE)
    found = version("torch")
    release = found.partition("+")[0]
    if release not in pinned:
        sys.exit(f"torch is {found}, pinned are {', '.join(pinned)}: pip install -r requirements/torch.txt")
    import torch

    made_from = getattr(torch.version, "git_version", "unknown")
    if made_from != COMMIT_OF[release]:
        sys.exit(f"torch {found} says that it was made from {made_from}, the release from {COMMIT_OF[release]}")
    print(f"torch {found}, made from {made_from}")


if __name__ == "__main__":
    main()
