"""What a person wants to know of a corpus just made."""

import sys
from typing import Any

from data_prep.corpus.record_notes import COUNTERS
from data_prep.io.errors import printable

_SENTENCES = {
    "broken": "broken records were left out",
    "untrained": "conversations without a trained token were left out",
    "changed": "turns of the assistant were changed by the template",
}


def corpus_facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """Counts out of a manifest; those of what did not happen are left out."""
    facts = {key: manifest[key] for key in ("documents", "tokens", "empty_documents_dropped")}
    if "trained_tokens" in manifest:
        facts["trained_tokens"] = manifest["trained_tokens"]
    notes = {counter: manifest["provenance"].get(counter, 0) for counter in COUNTERS.values()}
    return facts | {key: count for key, count in notes.items() if count}


def warn_of_records(provenance: dict[str, Any]) -> None:
    """Say on stderr which records were left out, and which turns the chat template changed."""
    for kind, counter in COUNTERS.items():
        if count := provenance.get(counter, 0):
            examples = "; ".join(printable(example, 200) for example in provenance["examples"][kind][:3])
            print(f"warning: {count:,} {_SENTENCES[kind]}: {examples}", file=sys.stderr)
