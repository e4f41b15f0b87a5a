"""Property: wrong input ends with exit code 2 and one sentence, and leaves nothing half-written."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_corpus, write_model
from forked import run_davinci

# The first of two ranks, whose fellow never comes: a process group that were opened would wait for it in vain.
FIRST_OF_TWO = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}


def refuse(*arguments: object, cwd: Path, **environment: str) -> str:
    """Run a command that must be refused; returns its sentence. Nothing may appear in the folder."""
    before = sorted(cwd.rglob("*"))
    result = run_davinci(*arguments, cwd=cwd, **environment)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert sorted(cwd.rglob("*")) == before
    return result.stderr


def refuse_training(recipe: Path, *overrides: str) -> str:
    """What training says on rank 0, before any process group is up; the other ranks say nothing."""
    sentence = refuse("train", recipe, *overrides, cwd=recipe.parent, **FIRST_OF_TWO)
    other = {**FIRST_OF_TWO, "RANK": "1", "LOCAL_RANK": "1"}
    result = run_davinci("train", recipe, *overrides, cwd=recipe.parent, **other)
    assert (result.returncode, result.stderr) == (2, "")
    return sentence


@pytest.fixture
def recipe(recipe_values: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values))
    return path


def test_an_unknown_recipe_key(recipe: Path, tmp_path: Path) -> None:
    assert "did you mean schedule?" in refuse("train", recipe, "shedule.lr=1", cwd=tmp_path)


def test_a_size_that_does_not_divide(recipe: Path, tmp_path: Path) -> None:
    sentence = refuse("train", recipe, "megatron.tensor_model_parallel_size=3", cwd=tmp_path)
    assert "num_attention_heads is 4" in sentence and "does not divide: 1, 2, 4 do" in sentence


def test_more_ranks_than_processes(recipe: Path, tmp_path: Path) -> None:
    sentence = refuse("train", recipe, "megatron.tensor_model_parallel_size=2", cwd=tmp_path)
    assert "torchrun --nproc-per-node 2" in sentence


def test_fp8_on_a_machine_without(recipe: Path) -> None:
    sentence = refuse_training(recipe, "megatron={bf16: true, fp8: hybrid, fp8_recipe: tensorwise}")
    assert "sets megatron.fp8, and this machine has no GPU: train with megatron.fp8=null" in sentence


def test_what_megatron_itself_refuses(recipe: Path, tmp_path: Path) -> None:
    assert "sequence" in refuse("train", recipe, "megatron.sequence_parallel=true", cwd=tmp_path).lower()


def test_a_world_that_the_layout_does_not_divide(recipe: Path) -> None:
    layout = ["megatron.tensor_model_parallel_size=2", "megatron.context_parallel_size=2"]
    sentence = refuse_training(recipe, *layout)
    assert "2 process(es) cannot hold tensor 2 x pipeline 1 x context 2 ranks: start a multiple of 4" in sentence


def test_a_layout_that_does_not_divide(recipe: Path) -> None:
    layout = ["megatron.pipeline_model_parallel_size=2", "megatron.virtual_pipeline_model_parallel_size=3"]
    sentence = refuse_training(recipe, *layout)
    assert "num_layers is 4, which pipeline_model_parallel_size x virtual_pipeline_model_parallel_size = 6" in sentence


def test_a_schedule_shorter_than_its_warm_up(recipe: Path) -> None:
    sentence = refuse_training(recipe, "schedule.lr_warmup_iters=3")
    assert "warms up for 3 steps, and its schedule has 1" in sentence


def test_a_loss_that_is_not_finite_is_one_sentence_and_saves_nothing(recipe: Path, tmp_path: Path) -> None:
    changes = [
        "schedule.lr=1e30",
        "schedule.lr_warmup_iters=0",
        "data.stages.0.epochs=4",
        "checkpoint.save_interval=10",
    ]
    result = run_davinci("train", recipe, *changes)
    assert result.returncode == 1
    assert "nothing of this one is saved" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "latest").exists()


def test_damaged_progress_and_metrics(recipe: Path, tmp_path: Path) -> None:
    changes = ["data.stages.0.epochs=2", "checkpoint.save_interval=1"]
    run_davinci("train", recipe, *changes).check_returncode()
    (tmp_path / "run" / "latest").write_text("step_0000001\n")
    metrics = tmp_path / "run" / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text("{" + whole)
    assert "metrics.jsonl, line 1, is no JSON object with a step" in refuse("train", recipe, *changes, cwd=tmp_path)
    metrics.write_text(whole)
    (tmp_path / "run" / "step_0000001" / "progress.json").write_text("{}")
    assert "has no checkpoint that is whole" in refuse_training(recipe, *changes)


def test_weights_that_are_damaged(recipe: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "weights")
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"rubbish")
    assert "model.safetensors is no safetensors file, or cut off" in refuse(
        "train", recipe, "init_from=weights", cwd=tmp_path
    )
    (tmp_path / "weights" / "model.safetensors").unlink()
    index = {"weight_map": {"model.embed_tokens.weight": "model-00001.safetensors"}}
    (tmp_path / "weights" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "does not exist: the index names it" in refuse("train", recipe, "init_from=weights", cwd=tmp_path)


def test_a_later_stage_that_megatron_refuses_is_refused_before_the_first_trains(recipe: Path) -> None:
    values = yaml.safe_load(recipe.read_text())
    [first] = values["data"]["stages"]
    values["data"]["stages"].append({**first, "name": "second", "megatron": {"sequence_parallel": True}})
    recipe.write_text(yaml.safe_dump(values))
    assert "sequence" in refuse_training(recipe).lower()


def test_a_stage_without_data(recipe: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "long", [40, 50])
    drop = [f"data.stages.0.blend.0.corpus={tmp_path / 'long'}", "data.seq_length=32", "data.long_documents=drop"]
    assert "stage only has no documents" in refuse_training(recipe, *drop)
    evaluated = ["evaluation.eval_interval=1", "evaluation.held_out_documents=1"]
    assert "long has 0 documents to choose from" in refuse_training(recipe, *drop, *evaluated)
    assert "corpus has 17 documents" in refuse_training(recipe, evaluated[0], "evaluation.held_out_documents=17")


def test_a_plan_with_held_out_documents(recipe: Path) -> None:
    changes = [
        "evaluation.eval_interval=1",
        "evaluation.held_out_documents=1",
        "batch.unit=sequences",
        "data.stages.0.plan=p",
    ]
    assert "has a plan, which packs every document" in refuse_training(recipe, *changes)


def test_a_resume_with_another_corpus(recipe: Path, tmp_path: Path) -> None:
    run_davinci("train", recipe).check_returncode()
    write_corpus(tmp_path / "other", [5, 6, 7])
    sentence = refuse_training(recipe, f"data.stages.0.blend.0.corpus={tmp_path / 'other'}")
    assert "was trained with other data, length, batch size, seed or objective" in sentence
    sentence = refuse_training(recipe, "data.stages.0.loss_mask=false")
    assert "was trained with other data, length, batch size, seed or objective" in sentence


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
    arguments = ["in.jsonl", "--tokenizer", "tokenizer.json", "--out"]
    sentence = refuse("data", "tokenize", *arguments, "strict", "--strict", cwd=tmp_path)
    assert "record 2" in sentence and "body" in sentence
    kept = run_davinci("data", "tokenize", *arguments, "corpus", cwd=tmp_path)
    kept.check_returncode()
    assert "1 broken records were left out: in.jsonl, record 2" in kept.stderr


def test_a_tokenizer_that_is_not_the_corpus_one(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "in.jsonl").write_text('{"text": "some text"}\n')
    arguments = ["in.jsonl", "--tokenizer", "tokenizer.json", "--out", "text"]
    run_davinci("data", "tokenize", *arguments, cwd=tmp_path).check_returncode()
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
    assert "is no torch_dist checkpoint" in refuse("convert", "megatron-to-hf", "run", "hf", cwd=tmp_path)


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
