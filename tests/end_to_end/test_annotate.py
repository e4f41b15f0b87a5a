"""The annotation: entropies are those of transformers, in every layout; a killed run ends in the same bytes."""

import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EFFORT
from forked import run_davinci_on_ranks
from test_bad_input import refuse
from training import DAVINCI
from transformers import AutoModelForCausalLM

from data_prep.corpus import Annotation, Corpus, CorpusWriter

LAYOUTS = {
    "TP2+SP": ["tensor_model_parallel_size=2", "sequence_parallel=true"],
    "PP2": ["pipeline_model_parallel_size=2"],
    "DP2": [],
}


@pytest.fixture
def corpus(taught: Path, tmp_path: Path) -> Path:
    """Some of the lessons, without an annotation."""
    return some_of(taught / "lessons", tmp_path / "c", 40)


def some_of(source: Path, prefix: Path, count: int) -> Path:
    lessons = Corpus(source)
    writer = CorpusWriter(prefix, lessons.tokenizer)
    writer.add([lessons[document] for document in range(count)])
    writer.commit({})
    return prefix


def annotate(prefix: Path, model: Path, *more: str, ranks: int = 1) -> np.ndarray:
    ended = run_davinci_on_ranks(ranks, "rmt", "annotate", prefix, "--model", model, *more)
    assert ended.returncode == 0, ended.stderr
    return np.array(Annotation(Corpus(prefix)).entropies)


def in_small_blocks(prefix: Path, model: Path) -> list[str]:
    """`davinci rmt annotate`, in blocks small enough to be killed between them."""
    program = "from megatron_davinci.rl import annotate; annotate.BLOCK_TOKENS = 6000; " + DAVINCI[-1]
    return [*DAVINCI[:-1], program, "rmt", "annotate", str(prefix), "--model", str(model)]


@torch.no_grad()
def theirs(corpus: Corpus, model: Path, top: int | None) -> np.ndarray:
    """The definition, by transformers, one document after the other."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for document in range(len(corpus)):
        logits = reference(torch.from_numpy(corpus[document])[None]).logits[0, :-1].double()
        kept = logits.topk(top, 1).values if top is not None else logits
        log_probs = kept.log_softmax(1)
        found.append(torch.cat([torch.zeros(1), -(log_probs.exp() * log_probs).sum(1)]).numpy())
    return np.concatenate(found)


@pytest.mark.parametrize("entropy, top", [("top16", 16), ("full", None)])
def test_entropies_are_those_of_transformers(taught: Path, corpus: Path, entropy: str, top: int | None) -> None:
    found = annotate(corpus, taught / "hf", "--entropy", entropy)
    assert np.abs(found - theirs(Corpus(corpus), taught / "hf", top)).max() < 1e-4
    assert Annotation(Corpus(corpus)).description["entropy"] == entropy


@pytest.mark.parametrize(
    "layout",
    list(LAYOUTS.values())[: None if EFFORT > 1 else 1],
    ids=list(LAYOUTS)[: None if EFFORT > 1 else 1],
)
def test_layouts_find_the_same_entropies(taught: Path, corpus: Path, tmp_path: Path, layout: list[str]) -> None:
    alone = annotate(some_of(taught / "lessons", tmp_path / "alone", 40), taught / "hf")
    assert np.abs(annotate(corpus, taught / "hf", *layout, ranks=2) - alone).max() < 1e-4


def test_a_killed_run_ends_in_the_same_bytes(taught: Path, tmp_path: Path) -> None:
    whole = some_of(taught / "lessons", tmp_path / "whole", 1500)
    killed = some_of(taught / "lessons", tmp_path / "killed", 1500)
    subprocess.run(in_small_blocks(whole, taught / "hf"), check=True)
    part = killed.with_name("killed.entropy.bin.part")
    process = subprocess.Popen(in_small_blocks(killed, taught / "hf"))
    while not (part.is_file() and part.stat().st_size):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    written = part.stat().st_size
    assert 0 < written < 4 * len(Corpus(killed).tokens)
    subprocess.run(in_small_blocks(killed, taught / "hf"), check=True)
    for name in ("bin", "idx"):
        ours, expected = (prefix.with_name(f"{prefix.name}.entropy.{name}") for prefix in (killed, whole))
        assert ours.read_bytes() == expected.read_bytes()


def test_what_cannot_be_annotated_is_refused(taught: Path, corpus: Path, tmp_path: Path) -> None:
    model = taught / "hf"
    assert "context_parallel_size" in refuse(
        "rmt", "annotate", corpus, "--model", model, "context_parallel_size=2", cwd=tmp_path
    )
    assert "docs.entropy.json already exists" in refuse(
        "rmt", "annotate", taught / "docs", "--model", model, cwd=tmp_path
    )
    assert "has no model.safetensors" in refuse("rmt", "annotate", corpus, "--model", taught / "model", cwd=tmp_path)
    long = CorpusWriter(tmp_path / "long", Corpus(corpus).tokenizer)
    long.add([np.ones(300, np.int64)])
    long.commit({})
    assert "a document of 300 tokens, the model takes 256" in refuse(
        "rmt", "annotate", tmp_path / "long", "--model", model, cwd=tmp_path
    )
    other = tmp_path / "other"
    shutil.copytree(model, other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    assert "another tokenizer" in refuse("rmt", "annotate", corpus, "--model", other, cwd=tmp_path)
