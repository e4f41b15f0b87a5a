"""Under which licences a repository stands, by the texts at its top."""

import re
from tempfile import NamedTemporaryFile

from identify import identify

from data_prep.sources.git_command import GitClone, MissingObjects

_NAMES = re.compile(r"(?:un)?licen[cs]e|copying", re.IGNORECASE)


_MOST_FILES, _MOST_BYTES = 16, 256 << 10  # compared with every licence there is: a text of a megabyte takes minutes


def licenses_of(git: GitClone) -> tuple[str, ...]:
    """SPDX ids of the known licences among LICENSE, LICENCE, UNLICENSE, COPYING and their like, each once, in order."""
    files = [blob for name, blob in git.top_files().items() if _NAMES.match(name)]
    try:
        contents = git.blobs(files[:_MOST_FILES], _MOST_BYTES)
    except MissingObjects:  # a clone without contents, which fetches what it needs
        return ()
    found = (_license(content) for content in contents.values() if content)
    return tuple(sorted({license_id for license_id in found if license_id}))


def _license(text: bytes) -> str | None:
    with NamedTemporaryFile(suffix=".txt") as file:
        file.write(text.decode(errors="replace").encode())
        file.flush()
        license_id: str | None = identify.license_id(file.name)
    return license_id
