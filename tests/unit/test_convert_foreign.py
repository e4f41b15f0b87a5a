"""Properties of conversion for what other programs wrote: Megatron's own releases, and whoever means harm."""

import io
import json
import pickle
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_bad_input import refuse
from test_convert import SMALL, Evil, same, weights, write_weights

from data_prep import InputError
from megatron_davinci.models.config import load_model_config
from megatron_davinci.weights.compare import differences
from megatron_davinci.weights.conversion import ConversionOptions
from megatron_davinci.weights.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    read_metadata,
    write_metadata,
)
from megatron_davinci.weights.stored_tensors import StoredTensor, megatron_tensors
from megatron_davinci.weights.tensor_plan import plan_huggingface
from megatron_davinci.weights.to_huggingface import export_to_hf
from megatron_davinci.weights.to_megatron import import_from_hf

ARCHIVE = Path(__file__).parents[1] / "data" / "megatron_checkpoints.tar.xz"
RUNS = ("megatron-core-0.14.0", "megatron-core-0.15.0", "megatron-core-0.16.1-layers", "megatron-core-0.19.2")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def copied(foreign: Path, folder: Path, run: str = RUNS[1]) -> Path:
    """A checkpoint to change."""
    found = folder / "copy"
    found.mkdir()
    for path in (foreign / run / "iter_0000100").iterdir():
        (found / path.name).write_bytes(path.read_bytes())
    return found


def assert_whole(foreign: Path, checkpoint: Path, folder: Path) -> None:
    """It holds the weights that were saved, whose norms Megatron kept in fp32."""
    export_to_hf(checkpoint, folder / "right", options=ConversionOptions("bf16"), model=str(foreign / "hf"))
    assert same(weights(foreign / "hf"), weights(folder / "right"))


@pytest.mark.parametrize("run", RUNS)
def test_megatrons_releases_are_read(foreign: Path, tmp_path: Path, run: str) -> None:
    assert_whole(foreign, foreign / run, tmp_path)


@pytest.mark.parametrize("said", ["arguments", "arguments in an object", "run_config.yaml"])
def test_a_model_that_a_checkpoints_own_words_contradict_is_refused(foreign: Path, tmp_path: Path, said: str) -> None:
    """Other numbers of heads have the same shapes: the weights would be cut up wrongly."""
    other = write_weights(
        tmp_path / "other", num_hidden_layers=2, hidden_size=16, intermediate_size=24, vocab_size=40,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    checkpoint = copied(foreign, tmp_path, RUNS[3] if said == "arguments in an object" else RUNS[1])
    if said == "run_config.yaml":
        (checkpoint / "common.pt").unlink()
        (checkpoint / "run_config.yaml").write_text("model:\n  _target_: bridge.Qwen2\n  num_attention_heads: 4\n")
    with pytest.raises(InputError, match=r"says that its num_attention_heads is 4, the model named has 8"):
        export_to_hf(checkpoint, tmp_path / "back", model=str(other))
    assert not (tmp_path / "back").exists()
    assert_whole(foreign, checkpoint, tmp_path)


def test_no_code_of_arguments_is_run(foreign: Path, tmp_path: Path) -> None:
    checkpoint = copied(foreign, tmp_path)
    with zipfile.ZipFile(checkpoint / "common.pt", "w") as archive:
        archive.writestr("common/data.pkl", pickle.dumps({"args": Evil(tmp_path / "touched")}))
    assert_whole(foreign, checkpoint, tmp_path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "change, sentence",
    [
        ("twice", r"holds decoder.final_layernorm.weight twice, once as (module\.)?decoder.final_layernorm.weight"),
        ("outside", r"has a chunk of decoder.layers.mlp.linear_fc2.weight outside its shape"),
        ("endless", r"linear_fc2.weight has type torch.bfloat16 and shape \[1000000000, "),
        ("no numbers", r".metadata is damaged \(offsets of decoder.layers.mlp.linear_fc2.weight is a NoneType\)"),
        ("in parts", r"has decoder.final_layernorm.weight in two parts \(singleton_local_shards\)"),
    ],
)
def test_metadata_that_cannot_be_is_refused(foreign: Path, tmp_path: Path, change: str, sentence: str) -> None:
    checkpoint = copied(foreign, tmp_path)
    metadata = read_metadata(checkpoint / ".metadata")
    tensors: Any = metadata.state_dict_metadata
    entry, norm = tensors["decoder.layers.mlp.linear_fc2.weight"], "decoder.final_layernorm.weight"
    if change in ("twice", "in parts"):
        name = f"module.{norm}" if change == "twice" else f"{norm}_w"
        tensors[name] = tensors[norm] if change == "twice" else tensors.pop(norm)
        for index, info in list(metadata.storage_data.items()):
            if index.fqn == norm:
                metadata.storage_data[MetadataIndex(name, index.offset)] = replace(info, offset=info.offset + 1)
    elif change == "outside":
        entry.chunks[0].sizes = torch.Size([10**9, *entry.chunks[0].sizes[1:]])
    elif change == "endless":
        entry.size = torch.Size([10**9, *entry.size[1:]])
        entry.chunks[0].sizes = torch.Size([10**9, *entry.chunks[0].sizes[1:]])
    else:
        entry.chunks[0].offsets = None
    write_metadata(Metadata(tensors, storage_data=metadata.storage_data), checkpoint / ".metadata")
    with pytest.raises(InputError, match=sentence):
        export_to_hf(checkpoint, tmp_path / "back", model=str(foreign / "hf"))


@pytest.mark.parametrize("rows", [40, 1024])
def test_another_padding_of_the_vocabulary_is_read(foreign: Path, rows: int) -> None:
    """Of 40 tokens, which are 128 rows here; what lies beyond them is not looked at."""
    hf, run = foreign / "hf", foreign / RUNS[0] / "iter_0000100"
    tensors, name = megatron_tensors(run), "output_layer.weight"
    [first, second] = tensors[name].pieces  # 20 rows of each rank
    more = [first._replace(row=row) for row in range(40, rows, 20)]
    more = [piece._replace(rows=min(20, rows - piece.row)) for piece in more]
    tensors[name] = StoredTensor((rows, 16), torch.bfloat16, [first, second, *more])
    found = {target.name: target for target in plan_huggingface(tensors, load_model_config(str(hf)), run)}
    assert found["lm_head.weight"].whole().equal(weights(hf)["lm_head.weight"])
    tensors[name] = StoredTensor((20, 16), torch.bfloat16, [first])
    with pytest.raises(InputError, match=r"output_layer.weight has the shape \[20, 16\]"):
        plan_huggingface(tensors, load_model_config(str(hf)), run)


def test_every_tensor_keeps_its_own_type(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf", torch.bfloat16)
    mixed = {name: t.float() if "norm" in name else t for name, t in weights(source).items()}
    save_file(mixed, source / "model.safetensors")
    import_from_hf(source, tmp_path / "m", SMALL)
    export_to_hf(tmp_path / "m", tmp_path / "back", options=SMALL)
    assert same(mixed, weights(tmp_path / "back")) and differences(source, tmp_path / "m") == []
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    mixed["model.layers.1.input_layernorm.weight"] = mixed["model.layers.1.input_layernorm.weight"].bfloat16()
    save_file(mixed, source / "model.safetensors")
    with pytest.raises(InputError, match=r"layers.1.\S+ has another type than in other layers: give all one"):
        import_from_hf(source, tmp_path / "other")


def test_numbers_that_fp16_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    tensors = weights(source)
    tensors["model.norm.weight"][3] = 1e30
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(InputError, match=r"decoder.final_layernorm.weight has numbers that fp16 cannot hold"):
        import_from_hf(source, tmp_path / "m", ConversionOptions("fp16"))
    assert not (tmp_path / "m").exists()


def test_what_lies_beside_the_weights_comes_along(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    beside = {"generation_config.json": '{"top_p": 0.8}', "tokenizer.model": "-", "chat_template.json": "{}"}
    for name, text in beside.items():
        (source / name).write_text(text)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    import_from_hf(source, tmp_path / "m")
    export_to_hf(tmp_path / "m", tmp_path / "back")
    assert {name: (tmp_path / "back" / name).read_text() for name in beside} == beside
    export_to_hf(tmp_path / "m", tmp_path / "other", tmp_path / "tokenizer")
    assert (tmp_path / "other" / "generation_config.json").read_text() == beside["generation_config.json"]
    assert not (tmp_path / "other" / "tokenizer.model").exists()


def test_objects_that_megatrons_layers_look_for_are_there(tmp_path: Path) -> None:
    """As Transformer Engine's layers name them."""
    source = write_weights(tmp_path / "hf", model_type="qwen3", architectures=["Qwen3ForCausalLM"], num_hidden_layers=2)
    import_from_hf(source, tmp_path / "m")
    metadata = read_metadata(tmp_path / "m" / ".metadata")
    found = {name for name, entry in metadata.state_dict_metadata.items() if isinstance(entry, BytesStorageMetadata)}
    modules = ("self_attention.core_attention", "self_attention.linear_proj", "self_attention.linear_qkv",
               "self_attention.q_layernorm", "self_attention.k_layernorm", "mlp.linear_fc1",
               "mlp.linear_fc2")  # fmt: skip
    layers = {f"decoder.layers.{module}._extra_state/shard_{n}_2" for module in modules for n in range(2)}
    assert found == layers | {"decoder.final_layernorm._extra_state/shard_0_1"}
    for index, place in metadata.storage_data.items():
        if index.fqn in found:
            data = (tmp_path / "m" / place.relative_path).read_bytes()[place.offset : place.offset + place.length]
            assert torch.load(io.BytesIO(data), weights_only=True) == [None]


@pytest.mark.parametrize(
    "options, sentence",
    [
        (("--shard-gigabytes", "nan"), "--shard-gigabytes is nan: it must lie between"),
        (("--shard-gigabytes", "-1"), "--shard-gigabytes is -1.0"),
    ],
)
def test_sizes_that_are_none_are_refused(tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    source = write_weights(tmp_path / "hf")
    assert sentence in refuse("convert", "hf-to-megatron", source, tmp_path / "m", *options, cwd=tmp_path)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"model_type": ["a"]}, r"has model_type \['a'\]; known: "),
        ({"rope_scaling": "x"}, r"has rope_scaling 'x'; it must be an object, or null"),
        ({"tie_word_embeddings": "no"}, r"has tie_word_embeddings 'no'; it must be true or false"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    source = write_weights(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=sentence):
        import_from_hf(source, tmp_path / "m")


def test_two_answers_to_where_the_weights_are_is_none(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    (source / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(InputError, match=r"has both model.safetensors and model.safetensors.index.json"):
        import_from_hf(source, tmp_path / "m")
    with pytest.raises(InputError, match=r"nowhere is no directory"):
        import_from_hf(tmp_path / "nowhere", tmp_path / "m")
