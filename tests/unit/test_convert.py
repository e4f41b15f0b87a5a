"""Laws of conversion: what comes back is what went in, to the last bit; what does not fit is named."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EFFORT, write_model
from safetensors.torch import load_file, save_file

from data_prep import InputError
from megatron_davinci.checkpoint.compare import differences
from megatron_davinci.checkpoint.convert import export_to_hf, import_from_hf
from megatron_davinci.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
    read_metadata,
    write_metadata,
)
from megatron_davinci.models.config import load_model_config
from megatron_davinci.models.families import mappings_of

SMALL = 40_000  # bytes of a shard: several for every model here
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2, tied, odd sizes": {
        "tie_word_embeddings": True, "vocab_size": 301, "hidden_size": 36, "intermediate_size": 50,
        "num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 3,
    },
    "qwen3, wide heads": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 24},
    "llama, one key for all queries": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 1,
    },
    "llama, a key for each query, tied": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def write_weights(directory: Path, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """A Hugging Face directory with random weights under the names that the family's mappings give."""
    write_model(directory, **config)
    model, g = load_model_config(str(directory)), torch.Generator().manual_seed(0)
    tensors = {}
    for mapping in mappings_of(model):
        for layer in range(model.num_layers if "*" in mapping.megatron else 1):
            for name, shape in zip(mapping.hf, mapping.hf_shapes(model), strict=True):
                tensors[name.replace("*", str(layer))] = torch.randn(shape, generator=g).to(dtype)
    save_file(tensors, directory / "model.safetensors")
    return directory


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in directory.glob("*.safetensors") for name, t in load_file(file).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(t.dtype == other[n].dtype and t.equal(other[n]) for n, t in one.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_again(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    source = write_weights(tmp_path / "hf", dtype, **MODELS[name])
    import_from_hf(source, tmp_path / "megatron", shard_bytes=SMALL)
    export_to_hf(tmp_path / "megatron", tmp_path / "back", None, shard_bytes=SMALL)
    assert same(weights(source), weights(tmp_path / "back"))
    assert differences(source, tmp_path / "megatron") == differences(tmp_path / "back", tmp_path / "megatron") == []
    assert (
        len(list((tmp_path / "back").glob("*.safetensors"))) > 1 < len(list((tmp_path / "megatron").glob("*.distcp")))
    )


def test_transformers_loads_what_is_exported(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = write_weights(tmp_path / "hf")
    import_from_hf(source, tmp_path / "megatron", shard_bytes=SMALL)
    export_to_hf(tmp_path / "megatron", tmp_path / "back", None, shard_bytes=SMALL)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32).state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in weights(source).items())


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_types_change_as_torch_changes_them(tmp_path: Path, dtype: Any) -> None:
    source = write_weights(tmp_path / "hf")
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    import_from_hf(source, tmp_path / "megatron", dtype)
    export_to_hf(tmp_path / "megatron", tmp_path / "back", None)
    assert same(weights(tmp_path / "back"), {name: tensor.to(kind) for name, tensor in weights(source).items()})
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == str(kind)[6:]


def test_torch_reads_the_checkpoint(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    source = write_weights(tmp_path / "hf")
    import_from_hf(source, tmp_path / "megatron", shard_bytes=SMALL)
    state = {"decoder.layers.mlp.linear_fc2.weight": torch.empty(4, 64, 112)}
    load(state, storage_reader=FileSystemReader(tmp_path / "megatron"), no_dist=True)
    expected = [weights(source)[f"model.layers.{layer}.mlp.down_proj.weight"] for layer in range(4)]
    assert state["decoder.layers.mlp.linear_fc2.weight"].equal(torch.stack(expected))


def test_a_checkpoint_with_a_key_for_each_layer_is_read_too(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    import_from_hf(source, tmp_path / "megatron")
    path = tmp_path / "megatron" / ".metadata"
    metadata = read_metadata(path)
    places = {(index.fqn, tuple(index.offset or ())): info for index, info in metadata.storage_data.items()}
    for name in [name for name in metadata.state_dict_metadata if name.startswith("decoder.layers.")]:
        entry = metadata.state_dict_metadata.pop(name)
        if not isinstance(entry, TensorStorageMetadata):
            continue
        for chunk in entry.chunks:
            layer, *rest = chunk.offsets
            own = name.replace("layers.", f"layers.{layer}.")
            whole = ChunkStorageMetadata(torch.Size(rest), torch.Size(chunk.sizes[1:]))
            one = TensorStorageMetadata(entry.properties, torch.Size(entry.size[1:]), [whole])
            metadata.state_dict_metadata[f"model.{own}"] = one
            metadata.storage_data[MetadataIndex(f"model.{own}", whole.offsets)] = places[name, tuple(chunk.offsets)]
    write_metadata(metadata, path)
    assert differences(source, tmp_path / "megatron") == []


def test_it_imports_nothing_that_trains(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    program = (
        "import sys; from pathlib import Path; from megatron_davinci.checkpoint.convert import *; "
        f"import_from_hf(Path({str(source)!r}), Path({str(tmp_path / 'm')!r})); "
        f"export_to_hf(Path({str(tmp_path / 'm')!r}), Path({str(tmp_path / 'back')!r}), None); "
        "heavy = ('megatron.', 'transformer_engine', 'torch.distributed.checkpoint'); "
        "print([m for m in sys.modules if m.startswith(heavy)])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_a_killed_conversion_ends_in_the_same_files(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf", hidden_size=1024, intermediate_size=2048, vocab_size=4096)
    directions = {"hf-to-megatron": source, "megatron-to-hf": tmp_path / "whole-hf-to-megatron"}
    for direction, given in directions.items():
        command = [sys.executable, "-m", "megatron_davinci", "convert", direction, str(given)]
        small = ["--shard-gigabytes", "0.004"]
        started = time.monotonic()
        subprocess.run([*command, str(tmp_path / f"whole-{direction}"), *small], check=True)
        takes = time.monotonic() - started
        killed = tmp_path / f"killed-{direction}"
        draw = random.Random(direction)
        for _ in range(EFFORT):
            process = subprocess.Popen([*command, str(killed), *small])
            time.sleep(draw.uniform(0.5, 1.0) * takes)
            process.kill()
            process.wait()
            if killed.exists():  # it was done already
                shutil.rmtree(killed)
        subprocess.run([*command, str(killed), *small], check=True)
        whole = json.loads((tmp_path / f"whole-{direction}" / "manifest.json").read_text())
        assert json.loads((killed / "manifest.json").read_text()) == whole
        assert sorted(p.name for p in killed.iterdir()) == sorted(
            p.name for p in (tmp_path / f"whole-{direction}").iterdir()
        )


def broken(directory: Path, change: str) -> Path:
    source = write_weights(directory)
    tensors = weights(source)
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)
    elif change == "shape":
        tensors[name] = torch.zeros(64, 112)
    elif change == "integers":
        tensors[name] = torch.zeros(112, 64, dtype=torch.int64)
    save_file(tensors, source / "model.safetensors")
    if change == "cut off":
        path = source / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    return source


@pytest.mark.parametrize(
    "change, sentence",
    [
        ("missing", r"has no tensor model.layers.1.mlp.up_proj.weight, which its config.json asks for"),
        ("extra", r"has a tensor model.layers.9.mlp.up_proj.weight that its config.json has no place for"),
        ("shape", r"up_proj.weight has the shape \[64, 112\], its config.json says \[112, 64\]"),
        ("integers", r"up_proj.weight has type I64"),
        ("cut off", r"bytes, its header says \d+: copy it again"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, change: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        import_from_hf(broken(tmp_path / "hf", change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    import_from_hf(write_weights(tmp_path / "hf"), tmp_path / "m")
    path = tmp_path / "m" / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"__0_0.distcp is missing or altered"):
        export_to_hf(tmp_path / "m", tmp_path / "out", None)
    (tmp_path / "m" / "manifest.json").unlink()  # as other programs leave it
    with pytest.raises(InputError, match=r"__0_0.distcp holds no tensor at byte \d+: it is cut off or altered"):
        export_to_hf(tmp_path / "m", tmp_path / "out", None)
    path.unlink()
    with pytest.raises(InputError, match=r"__0_0.distcp does not exist"):
        export_to_hf(tmp_path / "m", tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    for convert in (lambda: import_from_hf(source, tmp_path / "out"), lambda: import_from_hf(source, source)):
        with pytest.raises(InputError, match="already exists: remove it"):
            convert()
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_differences_are_told(tmp_path: Path) -> None:
    one, other = write_weights(tmp_path / "one"), write_weights(tmp_path / "other")
    tensors = weights(other)
    tensors["model.norm.weight"][3] += 0.5
    tensors["lm_head.weight"] = tensors["lm_head.weight"].bfloat16()
    del tensors["model.layers.0.self_attn.q_proj.bias"]
    save_file(tensors, other / "model.safetensors")
    found = differences(one, other)
    assert found[0].endswith("has no model.layers.0.self_attn.q_proj.bias") and len(found) == 3
    assert "model.norm.weight: 1 numbers differ, by up to 0.5" in found
    assert "lm_head.weight: types torch.float32 and torch.bfloat16" in found


def test_megatrons_own_flags_convert_too(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    tool = [sys.executable, str(Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"), "--model-type", "GPT"]
    there = ["--loader", "llama_mistral", "--saver", "core", "--target-tensor-parallel-size", "2", "--bf16"]
    back = ["--loader", "core", "--saver", "saver_hf"]
    megatron, hf = tmp_path / "m", tmp_path / "back"
    subprocess.run([*tool, *there, "--load-dir", str(source), "--save-dir", str(megatron)], check=True)
    subprocess.run([*tool, *back, "--load-dir", str(megatron), "--save-dir", str(hf)], check=True)
    assert same(weights(hf), {name: tensor.bfloat16() for name, tensor in weights(source).items()})
    same_form = [*tool, "--loader", "core", "--saver", "mcore", "--load-dir", str(hf), "--save-dir", str(megatron)]
    refused = subprocess.run(same_form, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "are the same form" in refused.stderr
