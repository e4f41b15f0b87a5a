"""Law: wrong input ends with exit code 2 and one sentence, and leaves nothing half-written."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_corpus, write_model

DAVINCI = [sys.executable, "-c", "from megatron_davinci.cli import main; main()"]


def refuse(*arguments: object, cwd: Path) -> str:
    """Run a command that must be refused; returns its sentence. Nothing may appear in the folder."""
    before = sorted(cwd.rglob("*"))
    result = subprocess.run([*DAVINCI, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert sorted(cwd.rglob("*")) == before
    return result.stderr


@pytest.fixture
def recipe(recipe_values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    return path


def test_an_unknown_recipe_key(recipe: Path, tmp_path: Path) -> None:
    assert "did you mean schedule?" in refuse("train", recipe, "shedule.lr=1", cwd=tmp_path)


def test_a_size_that_does_not_divide(recipe: Path, tmp_path: Path) -> None:
    sentence = refuse("train", recipe, "megatron.tensor_model_parallel_size=3", cwd=tmp_path)
    assert "num_attention_heads is 4" in sentence and "the next valid value is 6" in sentence


def test_more_ranks_than_processes(recipe: Path, tmp_path: Path) -> None:
    sentence = refuse("train", recipe, "megatron.tensor_model_parallel_size=2", cwd=tmp_path)
    assert "torchrun --nproc-per-node 2" in sentence


def test_what_megatron_itself_refuses(recipe: Path, tmp_path: Path) -> None:
    assert "sequence" in refuse("train", recipe, "megatron.sequence_parallel=true", cwd=tmp_path).lower()


def test_a_missing_corpus(recipe: Path, tmp_path: Path) -> None:
    assert "nowhere.bin does not exist" in refuse("train", recipe, "data.stages.0.blend.0.corpus=nowhere", cwd=tmp_path)


def test_a_truncated_corpus(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "corpus.bin"
    path.write_bytes(path.read_bytes()[:-10])
    assert "corpus.bin has" in refuse("train", recipe, cwd=tmp_path)


def test_ids_beyond_the_models_vocabulary(recipe: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "small", vocab_size=200)
    sentence = refuse("train", recipe, "model=small", cwd=tmp_path)
    assert "ids up to 255" in sentence and "vocab_size is 200" in sentence


def test_corpora_of_different_tokenizers(recipe: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "other", [5], vocab_size=250)
    values = yaml.safe_load(recipe.read_text())
    values["data"]["stages"][0]["blend"].append({"corpus": "other"})
    recipe.write_text(yaml.safe_dump(values))
    assert "different tokenizers" in refuse("train", recipe, cwd=tmp_path)


def test_documents_longer_than_a_sequence(recipe: Path, tmp_path: Path) -> None:
    sentence = refuse("train", recipe, "data.seq_length=32", cwd=tmp_path)
    assert "64 tokens" in sentence and "split or drop" in sentence


def test_weights_of_another_architecture(recipe: Path, tmp_path: Path) -> None:
    assert "has no config.json" in refuse("train", recipe, "init_from=absent", cwd=tmp_path)
    write_model(tmp_path / "wide", hidden_size=128)
    assert "another architecture" in refuse("train", recipe, "init_from=wide", cwd=tmp_path)
    write_model(tmp_path / "bare")
    assert "has no model.safetensors" in refuse("train", recipe, "init_from=bare", cwd=tmp_path)


def test_a_repository_without_commits(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path / "empty"], check=True)
    assert "has no commits" in refuse("data", "collect", "git", "empty", "--out", "records", cwd=tmp_path)
    assert "has no commits" in refuse("demo", "--repo", "empty", "--out", "out", cwd=tmp_path)


def test_records_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    assert "holds no records" in refuse("data", "build", "records", "--out", "samples", cwd=tmp_path)


def test_text_that_is_missing_from_a_record(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    write_tokenizer(tmp_path / "tokenizer.json")
    arguments = ["in.jsonl", "--tokenizer", "tokenizer.json", "--out", "corpus"]
    sentence = refuse("data", "tokenize", *arguments, cwd=tmp_path)
    assert "record 2" in sentence and "body" in sentence


def test_a_tokenizer_that_is_not_the_corpus_one(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "in.jsonl").write_text('{"text": "some text"}\n')
    arguments = ["in.jsonl", "--tokenizer", "tokenizer.json", "--out", "text"]
    subprocess.run([*DAVINCI, "data", "tokenize", *arguments], cwd=tmp_path, check=True, capture_output=True)
    recipe_values["data"]["stages"][0]["blend"] = [{"corpus": "text"}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe_values))
    assert "absent does not exist" in refuse("train", "recipe.yaml", "tokenizer=absent", cwd=tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text() + " ")
    assert "another tokenizer" in refuse("train", "recipe.yaml", "tokenizer=other", cwd=tmp_path)


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    subprocess.run(["git", "init", "-q", tmp_path / "clone"], check=True)
    commit = ["git", "-C", str(tmp_path / "clone"), "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q"]
    subprocess.run([*commit, "--allow-empty", "-m", "start"], check=True)
    assert "already exists" in refuse("data", "collect", "git", "clone", "--out", ".", cwd=tmp_path)
    assert "file" in refuse("data", "collect", "git", "clone", "--out", "file/records", cwd=tmp_path)
    write_corpus(tmp_path / "corpus", [5])
    assert "already exists" in refuse("data", "pack", "corpus", "--seq-length", "8", "--out", "file", cwd=tmp_path)


def test_a_checkpoint_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert "is no checkpoint" in refuse("convert", "megatron-to-hf", "run", "hf", cwd=tmp_path)


def test_an_output_that_is_there_already(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    assert "already exists" in refuse("demo", "--out", "out", cwd=tmp_path)


def write_tokenizer(path: Path) -> None:
    """The smallest byte-level BPE."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(path))
