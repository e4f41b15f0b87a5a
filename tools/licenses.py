"""Licences of all that is pinned, as packages declare them: `python tools/licenses.py`; it fails for none."""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, metadata
from pathlib import Path
from typing import Any

_PINS = ("torch.txt", "pinned.txt", "model.txt")
_FOLDER = Path(__file__).parents[1] / "requirements"
_CLASSIFIER = "License :: OSI Approved :: "


def pinned_names() -> list[str]:
    """Names of the packages that the requirements name."""
    lines = [line for name in _PINS for line in (_FOLDER / name).read_text().splitlines()]
    found = (re.match(r"([A-Za-z0-9._-]+)==", line) for line in lines)
    return list(dict.fromkeys(match[1] for match in found if match))


def license_of(name: str) -> str:
    """An SPDX expression where the package has one, else its classifiers, else its own words."""
    held: Any = metadata(name)
    if expression := held.get("License-Expression"):
        return str(expression)
    classified = [each.removeprefix(_CLASSIFIER) for each in held.get_all("Classifier") or () if _CLASSIFIER in each]
    words = (held.get("License") or "").strip().split("\n")[0]
    return ", ".join(classified) or words[:80] or _first_line(name)


def _first_line(name: str) -> str:
    """Of the licence that lies beside a package."""
    found = [file for file in distribution(name).files or () if "LICENSE" in file.name.upper()]
    return found[0].read_text().strip().split("\n")[0][:80] if found else ""


def main() -> None:
    """Print a line for each package."""
    unknown = []
    for name in sorted(pinned_names(), key=str.lower):
        try:
            found = license_of(name)
        except PackageNotFoundError:
            found = "(not installed)"
        unknown += [name] if not found else []
        print(f"{name:<40} {found or 'UNKNOWN'}")
    if unknown:
        sys.exit(f"no licence is declared by {', '.join(unknown)}")


if __name__ == "__main__":
    main()
