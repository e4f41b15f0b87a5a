"""Answers of a server on disk: a collection that was interrupted asks nothing twice."""

import os
from pathlib import Path
from typing import Any

import orjson
import zstandard
from xxhash import xxh3_128_hexdigest

from data_prep.io.files import part_of


class ResponseCache:
    """Values by request. A request is whatever JSON can hold; keep credentials out of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, request: Any) -> Any:
        """The value put for a request, None where there is none or it is damaged."""
        try:
            return orjson.loads(zstandard.ZstdDecompressor().decompress(self._path(request).read_bytes()))
        except (OSError, zstandard.ZstdError, orjson.JSONDecodeError, MemoryError):
            return None

    def put(self, request: Any, value: Any) -> None:
        """Keep a value; it appears by rename."""
        path = self._path(request)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(path)
        part.write_bytes(zstandard.ZstdCompressor().compress(orjson.dumps(value)))
        os.replace(part, path)  # noqa: PTH105 - not flushed: what a loss of power takes is asked for again

    def remove(self, request: Any) -> None:
        """Forget the value put for a request."""
        self._path(request).unlink(missing_ok=True)

    def _path(self, request: Any) -> Path:
        key = xxh3_128_hexdigest(orjson.dumps(request, option=orjson.OPT_SORT_KEYS))
        return self._folder / key[:2] / f"{key[2:]}.json.zst"
