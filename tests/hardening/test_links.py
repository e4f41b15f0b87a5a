"""In trees that others made no link leads outside; a user's own input folder may hold links."""

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from test_convert import write_weights

from data_prep import InputError
from data_prep.tokenize.chunk import Columns
from data_prep.tokenize.inputs import expand, read
from megatron_davinci.weights.paths import latest_checkpoint
from megatron_davinci.weights.to_megatron import import_from_hf


def names(file: str) -> Callable[[Path, Path], None]:
    def plant(data: Path, secret: Path) -> None:
        state = data / "state.json"
        [own] = data.glob("*.arrow")
        own.rename(secret / "s.arrow")
        state.write_text(state.read_text().replace(own.name, file.format(secret=secret)))

    return plant


def links(data: Path, secret: Path) -> None:
    [own] = data.glob("*.arrow")
    own.rename(secret / "s.arrow")
    own.symlink_to(secret / "s.arrow")


@pytest.mark.parametrize("plant", [names("../secret/s.arrow"), names("{secret}/s.arrow"), links])
def test_of_saved_datasets(tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "data")
    assert list(read([tmp_path / "data"], Columns((("text",),))))
    (tmp_path / "secret").mkdir()
    plant(tmp_path / "data", tmp_path / "secret")
    with pytest.raises(InputError, match=r"outside itself|leads out of"):
        list(read([tmp_path / "data"], Columns((("text",),))))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_of_models(tmp_path: Path, name: str) -> None:
    model = write_weights(tmp_path / "model")
    secret = tmp_path / "secret"
    secret.write_bytes((model / name).read_bytes() if (model / name).is_file() else b"{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    with pytest.raises(InputError, match="is a link that leads out of"):
        import_from_hf(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hugging_faces_cache_is_read(tmp_path: Path) -> None:
    """models--X/snapshots/HASH/file leads to models--X/blobs/."""
    model = write_weights(tmp_path / "made")
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "0123").mkdir(parents=True)
    for file in model.iterdir():
        file.rename(cache / "blobs" / file.name)
        (cache / "snapshots" / "0123" / file.name).symlink_to(Path("../../blobs") / file.name)
    import_from_hf(cache / "snapshots" / "0123", tmp_path / "out")
    assert (tmp_path / "out" / ".metadata").is_file()


@pytest.mark.parametrize("said", ["../other/step_0000001", "/etc", "step_1", "x" * 5000, "step_0000001\x00"])
def test_latest_names_a_checkpoint_of_its_run(tmp_path: Path, said: str) -> None:
    (tmp_path / "latest").write_text(said)
    with pytest.raises(InputError, match=r"which is no step_NNNNNNN|more than 4,096"):
        latest_checkpoint(tmp_path)


def test_a_users_own_folder_may_hold_links_even_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.jsonl").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jsonl").symlink_to(tmp_path / "elsewhere" / "b.jsonl")
    (tmp_path / "mine" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine" / "circle").symlink_to(tmp_path / "mine")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "mine")
    found = [str(path.relative_to(tmp_path / "mine")) for path in expand([str(tmp_path / "mine")])]
    assert found == ["a.jsonl", "more/b.jsonl"]
