"""What a person wants to know of a corpus just made."""

import sys
from typing import Any


def corpus_facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """Counts out of a manifest; those of what did not happen are left out."""
    facts = {key: manifest[key] for key in ("documents", "tokens", "empty_documents_dropped")}
    if "trained_tokens" in manifest:
        facts["trained_tokens"] = manifest["trained_tokens"]
    notes = {key: manifest["provenance"][key] for key in ("broken_records", "changed_turns")}
    return facts | {key: count for key, count in notes.items() if count}


def warn_of_records(provenance: dict[str, Any]) -> None:
    """Say on stderr which records were left out, and which turns the chat template changed."""
    texts = {"broken": "broken records were left out", "changed": "turns of the assistant were changed by the template"}
    for kind, counter in (("broken", "broken_records"), ("changed", "changed_turns")):
        if count := provenance[counter]:
            examples = "; ".join(provenance["examples"][kind][:3])
            print(f"warning: {count:,} {texts[kind]}: {examples}", file=sys.stderr)
