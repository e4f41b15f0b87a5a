"""Properties of conversion: what comes back is what went in, to the last bit; what does not fit is named."""

import io
import json
import pickle
import random
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EFFORT, write_model
from safetensors.torch import load_file, save_file

from data_prep import InputError
from megatron_davinci.models.config import load_model_config
from megatron_davinci.weights.compare import differences
from megatron_davinci.weights.conversion import Conversion, ConversionOptions
from megatron_davinci.weights.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorStorageMetadata,
    read_metadata,
    write_metadata,
)
from megatron_davinci.weights.open_weights import open_huggingface
from megatron_davinci.weights.stored_chunks import MappedFile
from megatron_davinci.weights.stored_tensors import Piece, StoredTensor
from megatron_davinci.weights.to_huggingface import export_to_hf
from megatron_davinci.weights.to_megatron import import_from_hf, write_distcp
from megatron_davinci.weights.torch_zip import find_data

SMALL = ConversionOptions(shard_bytes=40_000)  # several files for every model here
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
    for mapping in model.mappings:
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
    import_from_hf(source, tmp_path / "megatron", SMALL)
    export_to_hf(tmp_path / "megatron", tmp_path / "back", options=SMALL)
    assert same(weights(source), weights(tmp_path / "back"))
    assert differences(source, tmp_path / "megatron") == differences(tmp_path / "back", tmp_path / "megatron") == []
    assert (
        len(list((tmp_path / "back").glob("*.safetensors"))) > 1 < len(list((tmp_path / "megatron").glob("*.distcp")))
    )


def test_transformers_loads_what_is_exported(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = write_weights(tmp_path / "hf")
    import_from_hf(source, tmp_path / "megatron", SMALL)
    export_to_hf(tmp_path / "megatron", tmp_path / "back", options=SMALL)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32).state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in weights(source).items())


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_types_change_as_torch_changes_them(tmp_path: Path, dtype: Any) -> None:
    source = write_weights(tmp_path / "hf")
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    import_from_hf(source, tmp_path / "megatron", ConversionOptions(dtype))
    export_to_hf(tmp_path / "megatron", tmp_path / "back")
    assert same(weights(tmp_path / "back"), {name: tensor.to(kind) for name, tensor in weights(source).items()})
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == str(kind)[6:]


def test_torch_reads_the_checkpoint(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    source = write_weights(tmp_path / "hf")
    import_from_hf(source, tmp_path / "megatron", SMALL)
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
    for index in [index for index in metadata.storage_data if index.fqn.startswith("decoder.layers.")]:
        del metadata.storage_data[index]
    write_metadata(metadata, path)
    assert differences(source, tmp_path / "megatron") == []


def test_it_imports_nothing_that_trains(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    program = (
        "import sys; from pathlib import Path; from megatron_davinci.weights.to_huggingface import *; "
        "from megatron_davinci.weights.to_megatron import *; "
        f"import_from_hf(Path({str(source)!r}), Path({str(tmp_path / 'm')!r})); "
        f"export_to_hf(Path({str(tmp_path / 'm')!r}), Path({str(tmp_path / 'back')!r})); "
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
        export_to_hf(tmp_path / "m", tmp_path / "out")
    (tmp_path / "m" / "manifest.json").unlink()  # as other programs leave it
    with pytest.raises(
        InputError, match=r"__0_0.distcp holds no tensor at byte \d+: its archive is cut off or altered"
    ):
        export_to_hf(tmp_path / "m", tmp_path / "out")
    path.unlink()
    with pytest.raises(InputError, match=r"__0_0.distcp does not exist"):
        export_to_hf(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_altered_weights_are_found_without_a_manifest(tmp_path: Path) -> None:
    """By the checksums that torch itself keeps, of what is read alone."""
    import_from_hf(write_weights(tmp_path / "hf"), tmp_path / "m")
    (tmp_path / "m" / "manifest.json").unlink()
    path = tmp_path / "m" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"__0_0.distcp is altered between bytes \d+ and \d+"):
        export_to_hf(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("checksums", [True, False])
def test_torchs_own_archives_are_read(tmp_path: Path, checksums: bool) -> None:
    """As torch.save writes them: also without checksums, never transposed, and no tensor beside the one asked for."""
    path, tensor = tmp_path / "file", torch.randn(3, 5)
    torch.serialization.set_crc32_options(checksums)
    try:
        torch.save(tensor, path)
        at, _, crc = find_data(path, 0, path.stat().st_size, (3, 5), torch.float32)
        torch.save(tensor.t(), path.with_name("transposed"))
    finally:
        torch.serialization.set_crc32_options(True)
    data = path.read_bytes()[at : at + 60]
    assert data == tensor.numpy().tobytes() and crc == (zlib.crc32(data) if checksums else 0)
    with pytest.raises(InputError, match=r"no contiguous torch.float32 tensor of shape"):
        find_data(path.with_name("transposed"), 0, path.with_name("transposed").stat().st_size, (5, 3), torch.float32)
    with pytest.raises(InputError, match=r"no contiguous torch.int32 tensor"):
        find_data(path, 0, path.stat().st_size, (3, 5), torch.int32)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("where", [".metadata", "weights"])
def test_no_code_of_a_checkpoints_is_run(tmp_path: Path, where: str) -> None:
    import_from_hf(write_weights(tmp_path / "hf"), tmp_path / "m")
    (tmp_path / "m" / "manifest.json").unlink()
    touched = tmp_path / "touched"
    if where == ".metadata":
        (tmp_path / "m" / ".metadata").write_bytes(pickle.dumps(Evil(touched)))
    else:
        path = tmp_path / "m" / "__0_0.distcp"
        evil = io.BytesIO()
        torch.save(Evil(touched), evil)
        path.write_bytes(evil.getvalue() + path.read_bytes()[len(evil.getvalue()) :])
    with pytest.raises(InputError, match=r"it was refused|holds no"):
        export_to_hf(tmp_path / "m", tmp_path / "out")
    assert not touched.exists() and not (tmp_path / "out").exists()


def test_a_run_of_megatron_lms_is_found(tmp_path: Path) -> None:
    """Its tracker names the iteration, and nothing in it says what the model is."""
    source = write_weights(tmp_path / "hf")
    import_from_hf(source, tmp_path / "run" / "iter_0000300")
    shutil.rmtree(tmp_path / "run" / "iter_0000300" / "hf")
    (tmp_path / "run" / "iter_0000300" / "manifest.json").unlink()
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("300\n")
    with pytest.raises(InputError, match=r"iter_0000300 does not say what model it is of"):
        export_to_hf(tmp_path / "run", tmp_path / "back")
    export_to_hf(tmp_path / "run", tmp_path / "back", model=str(source))
    assert same(weights(source), weights(tmp_path / "back"))
    assert differences(source, tmp_path / "run", str(source)) == []
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("soon\n")
    with pytest.raises(InputError, match=r"says 'soon', which is no iteration"):
        export_to_hf(tmp_path / "run", tmp_path / "other", model=str(source))


def test_a_second_copy_of_tied_embeddings_must_be_one(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf", tie_word_embeddings=True)
    tensors = weights(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors")
    import_from_hf(source, tmp_path / "m")
    assert differences(source, tmp_path / "m") == []
    tensors["lm_head.weight"][5] += 1
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(InputError, match=r"lm_head.weight has other numbers than model.embed_tokens.weight"):
        import_from_hf(source, tmp_path / "other")


def test_other_options_begin_anew(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    left = tmp_path / "m.part" / "hf"
    left.mkdir(parents=True)
    (left.parent / "journal.jsonl").write_text('{"conversion":1,"dtype":"another"}\n')
    (left.parent / "__9_9.distcp").write_text("of another conversion")
    import_from_hf(source, tmp_path / "m", SMALL)
    assert differences(source, tmp_path / "m") == [] and not (tmp_path / "m" / "__9_9.distcp").exists()


def test_a_torn_line_of_the_journal_is_no_trouble(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    targets, model = open_huggingface(source).megatron_tensors(), load_model_config(str(source))
    with Conversion(source, tmp_path / "m", targets, model, SMALL) as begun:
        begun.write({"__0_0.distcp": begun.groups[0]}, write_distcp)
    with begun.journal.path.open("a") as journal:
        journal.write('{"file":"__0_1.dis')
    before = (tmp_path / "m.part" / "__0_0.distcp").stat()
    import_from_hf(source, tmp_path / "m", SMALL)
    after = (tmp_path / "m" / "__0_0.distcp").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # not written again
    assert differences(source, tmp_path / "m") == [] and not list(tmp_path.glob("m.part*"))


def test_what_is_no_conversions_is_not_touched(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    shutil.copytree(source, tmp_path / "m.part" / "hf")
    with pytest.raises(InputError, match=r"m.part is there, and no conversion has made it"):
        import_from_hf(source, tmp_path / "m")
    with pytest.raises(InputError, match=r"lies in .*m.part, where the conversion would be written"):
        import_from_hf(tmp_path / "m.part" / "hf", tmp_path / "m")
    assert same(weights(tmp_path / "m.part" / "hf"), weights(source))


def test_two_conversions_do_not_write_the_same_directory(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    targets, model = open_huggingface(source).megatron_tensors(), load_model_config(str(source))
    one = Conversion(source, tmp_path / "m", targets, model, SMALL)
    with one, pytest.raises(InputError, match=r"another process is writing m: wait"):
        import_from_hf(source, tmp_path / "m", SMALL)
    import_from_hf(source, tmp_path / "m", SMALL)


def test_a_model_that_contradicts_the_checkpoint_is_refused(tmp_path: Path) -> None:
    """Other numbers of heads may have the same shapes."""
    source = write_weights(tmp_path / "hf")
    other = write_weights(tmp_path / "other", num_attention_heads=8, num_key_value_heads=4)
    import_from_hf(source, tmp_path / "m")
    with pytest.raises(InputError, match=r"is of another architecture than"):
        export_to_hf(tmp_path / "m", tmp_path / "back", model=str(other))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"weight_map": {"a": "../hf/model.safetensors"}}, "has no weight_map of names of files beside it"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ([1], "has no weight_map"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, change: Any, sentence: str) -> None:
    source = write_weights(tmp_path / "hf")
    (source / "model.safetensors").rename(source / "model.safetensors.index.json")
    (source / "model.safetensors.index.json").write_text(json.dumps(change))
    with pytest.raises(InputError, match=sentence):
        import_from_hf(source, tmp_path / "m")


@pytest.mark.parametrize(
    "change", [{"data_offsets": [0, 4, 8]}, {"shape": None}, {"dtype": []}, {"data_offsets": [-4, 0]}]
)
def test_a_damaged_header_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    source = write_weights(tmp_path / "hf")
    path = source / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    header["model.norm.weight"] |= change
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.read_bytes()[8 + length :])
    with pytest.raises(InputError, match="has a damaged header"):
        import_from_hf(source, tmp_path / "m")


def test_tensors_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    path = source / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    gate = header["model.layers.0.mlp.gate_proj.weight"]["data_offsets"]
    header["model.layers.0.mlp.up_proj.weight"]["data_offsets"] = gate
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + path.read_bytes()[8 + length :])
    with pytest.raises(InputError, match="whose tensors do not follow each other"):
        import_from_hf(source, tmp_path / "m")


def test_chunks_that_leave_a_hole_are_refused() -> None:
    file = MappedFile(Path("-"))
    pieces = [Piece(file, lambda: 0, row, 0, 2, 4) for row in (0, 2)]
    assert StoredTensor((4, 4), torch.float32, pieces).covered()
    twice = [Piece(file, lambda: 0, 0, 0, 2, 4) for _ in range(2)]
    assert not StoredTensor((4, 4), torch.float32, twice).covered()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    for convert in (lambda: import_from_hf(source, tmp_path / "out"), lambda: import_from_hf(source, source)):
        with pytest.raises(InputError, match="already exists: remove it"):
            convert()
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_another_type_throughout_is_one_line(tmp_path: Path) -> None:
    one, other = write_weights(tmp_path / "one"), write_weights(tmp_path / "other")
    save_file({name: tensor.bfloat16() for name, tensor in weights(other).items()}, other / "model.safetensors")
    [said] = differences(one, other)
    assert "tensors: types torch.float32 and torch.bfloat16; compare conversions to one --dtype" in said


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
    there += ["--checkpoint-type", "hf", "--model-size", "qwen2.5"]
    back = ["--loader", "core", "--saver", "saver_hf"]
    megatron, hf = tmp_path / "m", tmp_path / "back"
    subprocess.run([*tool, *there, "--load-dir", str(source), "--save-dir", str(megatron)], check=True)
    assert (megatron / "latest_checkpointed_iteration.txt").read_text() == "release"  # where --load begins to look
    assert (megatron / "release" / ".metadata").is_file()
    subprocess.run([*tool, *back, "--load-dir", str(megatron), "--save-dir", str(hf)], check=True)
    assert same(weights(hf), {name: tensor.bfloat16() for name, tensor in weights(source).items()})
    same_form = [*tool, "--loader", "core", "--saver", "mcore", "--load-dir", str(hf), "--save-dir", str(megatron)]
    refused = subprocess.run(same_form, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "are the same form" in refused.stderr
    again = [*tool, *there, "--load-dir", str(source), "--save-dir", str(megatron)]
    refused = subprocess.run(again, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "already exists" in refused.stderr
    shutil.rmtree(megatron)
    (megatron / "release.part").mkdir(parents=True)  # as one that was killed leaves it
    (megatron / "release.part" / "journal.jsonl").write_text('{"conversion":1}\n')
    subprocess.run(again, check=True)
    assert differences(hf, megatron) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_in_both_directions(tmp_path: Path, number: float) -> None:
    source = write_weights(tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3] = number
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"decoder.final_layernorm.weight holds NaN or infinite numbers"):
        import_from_hf(source, tmp_path / "megatron")
    assert not (tmp_path / "megatron").exists()


def test_large_numbers_are_finite(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][:] = 3e38
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    import_from_hf(source, tmp_path / "megatron")
    export_to_hf(tmp_path / "megatron", tmp_path / "back")
    assert load_file(tmp_path / "back" / "model.safetensors")["model.norm.weight"].equal(tensors["model.norm.weight"])
