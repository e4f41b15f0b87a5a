"""Property: a part of a stored tensor is what slicing the whole gives, however it is cut into chunks; scales of FP8
come back through a pickle that was made here."""

import argparse
import io
import os
import pickle
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.dist_checkpointing.mapping import ShardedObject

from data_prep import InputError
from megatron_davinci.train.checkpoint.extra_state import rebuild_extra_states, transformer_engine_may_unpickle
from megatron_davinci.train.checkpoint.loading import _merge, _Reader, copy_part
from megatron_davinci.weights.common_state import common_state
from megatron_davinci.weights.foreign_configs import _arguments
from megatron_davinci.weights.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageInfo,
    TensorProperties,
    TensorStorageMetadata,
    write_metadata,
)
from megatron_davinci.weights.stored_chunks import StoredCheckpoint


def store(folder: Path, name: str, tensor: torch.Tensor, cuts: list[list[int]]) -> StoredCheckpoint:
    """A checkpoint of a tensor in chunks, as torch writes them; `cuts` per dimension, with both ends."""
    chunks, places, data = [], {}, b""
    starts = torch.cartesian_prod(*(torch.arange(len(cut) - 1) for cut in cuts)).view(-1, len(cuts)).tolist()
    for numbers in starts:
        spans = [(cut[n], cut[n + 1]) for cut, n in zip(cuts, numbers, strict=True)]
        buffer = io.BytesIO()
        torch.save(tensor[tuple(slice(*span) for span in spans)].clone(), buffer)
        offsets = torch.Size([begin for begin, _ in spans])
        chunks.append(ChunkStorageMetadata(offsets, torch.Size([end - begin for begin, end in spans])))
        places[MetadataIndex(name, offsets)] = StorageInfo("__0_0.distcp", len(data), len(buffer.getvalue()))
        data += buffer.getvalue()
    (folder / "__0_0.distcp").write_bytes(data)
    entry = TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.shape, chunks)
    write_metadata(Metadata({name: entry}, storage_data=places), folder / ".metadata")
    return StoredCheckpoint(folder)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_part_is_a_slice_of_the_whole(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    cuts = [sorted({0, size, *data.draw(st.sets(st.integers(0, size), max_size=2))}) for size in shape]
    spans = []
    for size in shape:
        begin = data.draw(st.integers(0, size - 1))
        spans.append((begin, data.draw(st.integers(begin + 1, size))))
    whole = torch.randn(shape).to(data.draw(st.sampled_from([torch.float32, torch.bfloat16])))
    stored = store(tmp_path_factory.mktemp("stored"), "w", whole, cuts).tensors["w"]
    target = torch.full([end - begin for begin, end in spans], torch.nan, dtype=whole.dtype)
    assert copy_part(stored, target, tuple(begin for begin, _ in spans)) == target.numel()
    assert target.equal(whole[tuple(slice(*span) for span in spans)])


def test_what_the_chunks_lack_is_counted(tmp_path: Path) -> None:
    stored = store(tmp_path, "w", torch.ones(4, 2), [[0, 2, 4], [0, 2]]).tensors["w"]
    stored.chunks.pop()
    assert copy_part(stored, torch.empty(3, 2), (1, 0)) == 2


def test_chunks_over_each_other_are_refused(tmp_path: Path) -> None:
    """As many numbers as are wanted, and some of them twice."""
    stored = store(tmp_path, "w", torch.ones(4), [[0, 2, 4]]).tensors["w"]
    stored.chunks[1] = stored.chunks[0]
    with pytest.raises(InputError, match="has chunks over each other"):
        copy_part(stored, torch.empty(4), (0,))


def test_chunks_over_each_other_are_found_among_many(tmp_path: Path) -> None:
    """However many there are, none is left unlooked at."""
    stored = store(tmp_path, "w", torch.arange(1001.0), [list(range(1002))]).tensors["w"]
    with pytest.raises(InputError, match="or more than 1,000"):
        copy_part(stored, torch.empty(1001), (0,))
    stored.chunks[999] = stored.chunks[998]
    with pytest.raises(InputError, match="has chunks over each other"):
        copy_part(stored, torch.empty(1000), (0,))


def test_an_extra_state_that_local_layers_do_not_write_is_empty(tmp_path: Path) -> None:
    """Transformer Engine's norms have one; a checkpoint of a CPU lacks it, and no other object may be absent."""
    reader = _Reader(store(tmp_path, "w", torch.ones(4), [[0, 4]]))
    found = reader._read(ShardedObject("decoder.final_layernorm._extra_state", None, (1,), (0,)))
    assert rebuild_extra_states({"norm._extra_state": found}, None, "here")["norm._extra_state"].numel() == 0
    with pytest.raises(InputError, match="has no other_state/shard_0_1, which this model asks for"):
        reader._read(ShardedObject("other_state", None, (1,), (0,)))


def test_a_common_state_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has a common state that does not fit this run"):
        _merge({"model": 5}, {"model": {"w": torch.ones(1)}}, tmp_path)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a" * 300, "../x", "/etc/passwd", "..", "a\nb", ""])
def test_names_of_files_are_plain(tmp_path: Path, name: str) -> None:
    place = {MetadataIndex("a"): StorageInfo(name, 0, 9)}
    write_metadata(Metadata({"a": BytesStorageMetadata()}, storage_data=place), tmp_path / ".metadata")
    with pytest.raises(InputError, match=r"names files outside the checkpoint: it was refused|is damaged"):
        StoredCheckpoint(tmp_path)


@pytest.mark.parametrize("value", [[("a", 1)], torch.ones(4, 2), {"num_layers": torch.ones(2), 1: 2}, None])
def test_arguments_that_are_none_are_not_compared(tmp_path: Path, value: Any) -> None:
    namespace = argparse.Namespace()
    namespace.__dict__.update({"untie_embeddings_and_output_weights": torch.tensor([1, 2]), "num_layers": value})
    torch.save({"args": namespace}, tmp_path / "common.pt")
    assert _arguments(tmp_path) == {}


@pytest.mark.parametrize("kind", ["pipe", "directory", "nothing"])
def test_a_file_of_weights_that_is_none_is_not_opened(tmp_path: Path, kind: str) -> None:
    place = {MetadataIndex("a"): StorageInfo("__0_0.distcp", 0, 9)}
    write_metadata(Metadata({"a": BytesStorageMetadata()}, storage_data=place), tmp_path / ".metadata")
    if kind == "pipe":
        os.mkfifo(tmp_path / "__0_0.distcp")
    elif kind == "directory":
        (tmp_path / "__0_0.distcp").mkdir()
    with pytest.raises(InputError, match=r"is no regular file: it was refused|cannot be read: No such file"):
        StoredCheckpoint(tmp_path).read_object("a")


@pytest.mark.parametrize("where", ["common.pt", "object"])
def test_common_state_of_every_release(tmp_path: Path, where: str) -> None:
    """Since 0.19 Megatron-Core keeps it as an object, in a list of one."""
    state = {"optimizer": {"param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]}, "iteration": 7}
    buffer = io.BytesIO()
    torch.save(state if where == "common.pt" else [state], buffer)
    name = "common_state/shard_0_1"
    (tmp_path / ("common.pt" if where == "common.pt" else "__0_0.distcp")).write_bytes(buffer.getvalue())
    place = {MetadataIndex(name): StorageInfo("__0_0.distcp", 0, len(buffer.getvalue()))}
    write_metadata(Metadata({name: BytesStorageMetadata()}, storage_data=place), tmp_path / ".metadata")
    assert common_state(tmp_path) == state


@dataclass
class DelayedScaling:
    """As Transformer Engine's recipe of that name."""

    margin: int = 0

    def delayed(self) -> bool:
        return True


@dataclass
class Float8CurrentScaling(DelayedScaling):
    def delayed(self) -> bool:
        return False


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Transformer Engine's module of recipes, which cannot be imported without a GPU."""
    module: Any = types.ModuleType("transformer_engine.common.recipe")
    for recipe in (DelayedScaling, Float8CurrentScaling):
        monkeypatch.setattr(recipe, "__module__", module.__name__)
        setattr(module, recipe.__name__, recipe)
    for name in ("transformer_engine", "transformer_engine.common"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def extra(value: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def layer_state(recipe: Any) -> dict[str, Any]:
    """What Transformer Engine's `get_extra_state` pickles for delayed scaling."""
    scales = {"scale_fwd": torch.rand(6), "scale_bwd": torch.rand(4), "amax_history_fwd": torch.rand(16, 6),
              "amax_history_bwd": torch.rand(16, 4)}  # fmt: skip
    variables = {"fp8_checkpoint": True, "num_gemms": 2, "fp8_max_fwd": 448.0, "name": "linear", "places": [1, 2]}
    return {"recipe": recipe, **scales, "extra_fp8_variables": variables}


NAME = "decoder.layers.0.mlp.linear_fc1._extra_state"


def test_scales_come_back_with_this_runs_recipe(recipes: Any) -> None:
    before = layer_state(recipes.DelayedScaling(margin=5))
    rebuilt = rebuild_extra_states({NAME: extra(before), "w": 1}, recipes.DelayedScaling(margin=0), "step_1")
    after = pickle.loads(rebuilt[NAME].numpy().tobytes())  # noqa: S301
    assert after.pop("recipe") == recipes.DelayedScaling(margin=0) and rebuilt["w"] == 1
    variables = after.pop("extra_fp8_variables")
    assert variables == {"fp8_checkpoint": True, "num_gemms": 2, "fp8_max_fwd": 448.0, "name": "linear"}
    assert after.keys() == before.keys() - {"recipe", "extra_fp8_variables"}
    assert all(tensor.equal(before[name]) for name, tensor in after.items())


def test_scales_that_this_run_does_not_keep_are_left_out(recipes: Any) -> None:
    held = extra(layer_state(recipes.DelayedScaling()))
    for recipe in (None, recipes.Float8CurrentScaling()):
        assert rebuild_extra_states({NAME: held}, recipe, "step_1")[NAME].numel() == 0
    stateless = extra({"recipe": recipes.Float8CurrentScaling(), "extra_fp8_variables": {}})
    assert rebuild_extra_states({NAME: stateless}, recipes.DelayedScaling(), "step_1")[NAME].numel() == 0
    assert rebuild_extra_states({NAME: None}, None, "step_1") == {NAME: None}


class Command:
    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return Path.touch, (self.ran,)


def test_transformer_engine_is_given_no_pickle_of_a_checkpoints(recipes: Any, tmp_path: Path) -> None:
    ran, clean = tmp_path / "ran", layer_state(recipes.DelayedScaling())
    planted = extra({**clean, "extra_fp8_variables": {"a": Command(ran)}})
    pickle.loads(planted.numpy().tobytes())  # noqa: S301 - as `set_extra_state` does
    assert ran.exists()
    ran.unlink()
    for state, reason in [
        (planted, "names pathlib.Path"),
        (extra({**clean, "recipe": Command(ran)}), "names pathlib.Path"),
        (extra([1]), "it is the pickle of a list"),
        (extra({**clean, "scale_fwd": 1}), "its scales are no tensors"),
        (extra({**clean, "extra_fp8_variables": {"num_gemms": 1 << 40}}), "num_gemms is no number up to 65,536"),
        (extra({**clean, "extra_fp8_variables": 3}), "have no names"),
        (io.BytesIO(b"x"), "it is a BytesIO where Transformer Engine writes bytes"),
    ]:
        with pytest.raises(InputError, match=f"step_1: {NAME} was refused, .*{reason}"):
            rebuild_extra_states({NAME: state}, recipes.DelayedScaling(), "step_1")
    assert not ran.exists()


def test_consent_lasts_as_long_as_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"
    for before in ("0", None):
        monkeypatch.setenv(name, before) if before else monkeypatch.delenv(name, raising=False)
        with transformer_engine_may_unpickle():
            assert os.environ[name] == "1"
        assert os.environ.get(name) == before
