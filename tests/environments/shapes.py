"""A small repository with a real history of merged pull requests, for tasks that are built within seconds."""

import os
import subprocess
from pathlib import Path

AREA = "def rectangle(a, b):\n    return a * b\n\n\ndef square(a):\n    return 4 * a\n"
TEST_AREA = "from shapes.area import rectangle\n\n\ndef test_rectangle():\n    assert rectangle(2, 3) == 6\n"
PROJECT = """[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"
[project]
name = "shapes"
version = "1.0"
requires-python = ">=3.9"
[project.optional-dependencies]
test = ["pytest"]
[tool.setuptools.packages.find]
where = ["src"]
"""
START = {
    "pyproject.toml": PROJECT,
    "src/shapes/__init__.py": "",
    "src/shapes/area.py": AREA,
    "src/shapes/round.py": "def circle(r):\n    return 3 * r * r\n",
    "tests/test_area.py": TEST_AREA,
    ".gitignore": "*.egg-info\n__pycache__/\n",
    "LICENSE": "",
}
FIXED = AREA.replace("4 * a", "a * a")
TEST_SQUARE = (
    TEST_AREA.replace("import rectangle", "import rectangle, square")
    + "\n\ndef test_square():\n    assert square(3) == 9\n"
)
PERIMETER = "def perimeter(a, b):\n    return 2 * (a + b)\n"
TEST_PERIMETER = "from shapes.perimeter import perimeter\n\n\ndef test_perimeter():\n    assert perimeter(1, 2) == 6\n"
PULL_REQUESTS: list[tuple[int, str, dict[str, str]]] = [
    (1, "Area of a square", {"src/shapes/area.py": FIXED, "tests/test_area.py": TEST_SQUARE}),
    (2, "Perimeters", {"src/shapes/perimeter.py": PERIMETER, "tests/test_perimeter.py": TEST_PERIMETER}),
    (3, "A test of what worked", {
        "src/shapes/round.py": "def circle(r):\n    return 3 * r**2\n",
        "tests/test_round.py": "from shapes.round import circle\n\n\ndef test_circle():\n    assert circle(2) == 12\n",
    }),
    (4, "Annotations", {
        "src/shapes/round.py": "def circle(r: int) -> int:\n    return 3 * r**2\n",
        "tests/test_round.py":
            "from shapes.round import circle\n\n\ndef test_circle() -> None:\n    assert circle(2) == 12\n",
    }),
    (5, "Words", {"README": "Shapes.\n"}),
]  # fmt: skip


class History:
    """The repository as it grows; every commit has a date of its own, a day after the one before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._day = folder, 0
        folder.mkdir()
        self.git("init", "-q", "-b", "main")
        self.git("remote", "add", "origin", "https://github.com/geometry/shapes.git")
        self.commit("Start", START)
        for number, title, files in PULL_REQUESTS:
            self.git("checkout", "-q", "-b", f"branch-{number}")
            self.commit(title, files)
            self.git("checkout", "-q", "main")
            message = f"Merge pull request #{number} from geometry/branch-{number}\n\n{title}"
            self.git("merge", "-q", "--no-ff", "-m", message, f"branch-{number}")

    def git(self, *arguments: str) -> str:
        """Run git in it."""
        self._day += 1
        date = f"2024-03-{self._day % 28 + 1:02d}T12:00:00+00:00"
        who = {
            f"GIT_{role}_{what}": value
            for role in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "Ada"), ("EMAIL", "ada@example.com"), ("DATE", date))
        }
        done = subprocess.run(
            ["git", "-C", self.folder, *arguments],
            env={**os.environ, **who},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def commit(self, message: str, files: dict[str, str]) -> None:
        """Write files and commit them."""
        for path, text in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
