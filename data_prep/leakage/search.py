"""The whole search of benchmarks in corpora or texts, with all that it writes."""

import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_prep.corpus.indexed import Corpus, corpus_files
from data_prep.io.errors import InputError, printable
from data_prep.io.files import (
    json_bytes,
    make_parent,
    new_file,
    only_writer,
    part_of,
    read_json,
    refuse_existing,
    write_json,
)
from data_prep.io.progress import counter
from data_prep.leakage.benchmarks import References
from data_prep.leakage.candidates import Candidates, collect_candidates
from data_prep.leakage.decontaminate import (
    check_parameters,
    clean_names,
    measure_leakage,
    write_clean_benchmarks,
    write_without,
)
from data_prep.leakage.page import write_page


@dataclass(frozen=True)
class LeakageSearch:
    """Where to look, for what, and what to write; the options of `davinci data decontaminate`.

    `inputs`: prefixes of corpora, or with `json_key` texts, of which only what can leak is tokenized. `n`: tokens of an
    n-gram; `tau`: the score from which an instance is contaminated.
    """

    inputs: list[str]
    benchmarks: list[str]
    tokenizer: Path
    out: Path
    json_key: str | None = None
    n: int = 13
    tau: float = 0.10
    threads: int = 1
    clean_benchmark: Path | None = None
    drop_to: Path | None = None
    html: Path | None = None
    quiet: bool = False

    def run(self) -> dict[str, Any]:
        """Write the report and what else is named; returns a summary. Raises InputError before anything is written."""
        with only_writer(self._begun):
            self._check()
            write_json(self._begun, self._settings())
            try:
                facts = self._search()
            except InputError:
                self._begun.unlink()  # it has come to its end, with a sentence
                raise
            self._begun.unlink()
            return facts

    def _search(self) -> dict[str, Any]:
        corpora = Corpus.open_all(self.inputs) if self.json_key is None else []
        references = References.read(self.benchmarks, self.tokenizer)
        if self.clean_benchmark is not None:
            clean_names(references.benchmarks)
        with TemporaryDirectory(prefix="candidates-", dir=make_parent(self.out)) as folder:
            found = self._candidates(references, Path(folder) / "corpus")
            corpora = found.corpora if found else corpora
            tokens = sum(int(corpus.lengths.sum()) for corpus in corpora)
            with counter("tokens", tokens, quiet=self.quiet) as advance:
                leakage = measure_leakage(corpora, references, self.n, self.tau, self.threads, advance)
            with new_file(self.out) as part:  # first: it stays, whatever becomes of the others
                part.write_bytes(json_bytes(found.say_where(leakage) if found else leakage.report))
            if self.html is not None:
                write_page(leakage.report, references, corpora, self.html, *([found.where] if found else []))
        if self.clean_benchmark is not None:
            write_clean_benchmarks(references.benchmarks, leakage.report["instances"], self.clean_benchmark)
        if self.drop_to is not None:
            write_without(corpora, leakage.leaking, self.drop_to)
        facts = {**self._counts(leakage.report), **(_facts_of_texts(found) if found else {})}
        return {**facts, "leaking_documents": len(leakage.leaking), "report": str(self.out)}

    def _check(self) -> None:
        if self.json_key is not None and self.drop_to is not None:
            raise InputError(
                "--drop-to writes a corpus: tokenize the texts first, then give their corpus without --text"
            )
        dropped = self.drop_to and corpus_files(self.drop_to, masked=False)["idx"]
        outputs = (self.out, self.html, self.clean_benchmark, dropped)
        if self._begun.exists() and read_json(self._begun) == self._settings():
            _remove(*outputs)  # of the same command, which did not come to its end
        for path in outputs:
            refuse_existing(path)
        check_parameters(self.n, self.tau)
        if self.threads < 1:
            raise InputError(f"--threads is {self.threads}; it must be at least 1")

    @property
    def _begun(self) -> Path:
        """The note of a command that has not come to its end."""
        return part_of(self.out.with_name(f"{self.out.name}.begun"))

    def _settings(self) -> dict[str, Any]:
        return {name: str(value) for name, value in asdict(self).items()}

    def _candidates(self, references: References, prefix: Path) -> Candidates | None:
        if self.json_key is None:
            return None
        with counter("texts", quiet=self.quiet) as advance:
            return collect_candidates(self.inputs, self.json_key, references, self.n, prefix, self.threads, advance)

    def _counts(self, report: dict[str, Any]) -> dict[str, Any]:
        """Counts of each benchmark, as it was named."""
        return {
            argument: {key: entry[key] for key in ("instances", "contaminated", "too_short")}
            for argument, entry in zip(self.benchmarks, report["benchmarks"], strict=True)
        }


def _remove(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and path.is_dir():
            shutil.rmtree(path)
        elif path is not None:
            path.unlink(missing_ok=True)


def _facts_of_texts(found: Candidates) -> dict[str, Any]:
    """How many texts there were and how many could leak; records that hold none are said on stderr."""
    if found.broken:
        print(
            f"warning: {len(found.broken):,} broken records were left out: {printable(found.broken[0], 200)}",
            file=sys.stderr,
        )
    if not found.texts:
        raise InputError("the inputs hold no text that can be searched: name the field with --json-key")
    return {"texts": found.texts, "tokenized": len(found.places)}
