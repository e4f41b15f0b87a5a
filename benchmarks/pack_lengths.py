"""Packing document lengths at 32k: our best-fit against TRL's and against lightbinpack's C++ (a library of packers)."""

import argparse
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from measure import alternate, median_of, save

from data_prep.corpus import pack_documents

SEQ_LENGTH = 32_768
TRL_DOCUMENTS = 20_000  # it is slow, and moves the tokens along


def lengths_of(count: int) -> npt.NDArray[np.int64]:
    """Log-normal around 2,000 tokens, as source files are; none longer than a sequence."""
    draws = np.random.default_rng(0).lognormal(np.log(2000) - 0.72, 1.2, count)
    return np.clip(draws.astype(np.int64), 1, SEQ_LENGTH)


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Write results/pack_lengths.json."""
    import lightbinpack
    from datasets import Dataset, disable_caching, disable_progress_bars
    from trl import pack_dataset

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    disable_caching()
    disable_progress_bars()
    lengths = lengths_of(arguments.documents)
    listed = lengths.tolist()
    few = lengths[:TRL_DOCUMENTS]
    dataset = Dataset.from_dict({"input_ids": [[0] * length for length in few.tolist()]})
    plan = pack_documents(lengths, SEQ_LENGTH, "error")
    assert plan.num_tokens == lengths.sum() and np.bincount(plan.document, minlength=len(lengths)).max() == 1
    sides = {
        "davinci": lambda: timed(lambda: pack_documents(lengths, SEQ_LENGTH, "error")),
        "lightbinpack_bfd": lambda: timed(lambda: lightbinpack.bfd(listed, SEQ_LENGTH)),
        "trl_bfd": lambda: timed(lambda: pack_dataset(dataset, SEQ_LENGTH, "bfd", map_kwargs={"batch_size": len(few)})),
    }
    seconds = alternate(sides, arguments.repeats)
    counts = {"davinci": len(lengths), "lightbinpack_bfd": len(lengths), "trl_bfd": len(few)}
    speed = {name: counts[name] / median_of(times) for name, times in seconds.items()}
    facts = {
        "documents": counts,
        "seconds": seconds,
        "documents_per_second": speed,
        "davinci_over_trl": speed["davinci"] / speed["trl_bfd"],
        "davinci_over_lightbinpack": speed["davinci"] / speed["lightbinpack_bfd"],
        "sequences": {"davinci": len(plan), "lightbinpack_bfd": len(lightbinpack.bfd(listed, SEQ_LENGTH))},
        "filled": plan.efficiency,
        "note": "TRL's public call moves the token columns too; the others give document numbers",
    }
    save("pack_lengths", facts, ["trl", "lightbinpack"])


if __name__ == "__main__":
    main()
