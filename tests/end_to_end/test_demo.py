"""The demo, whole, with fewer steps: on a real history, and where there is none."""

from pathlib import Path

import pytest
from conftest import of_acceptance
from page_twin import check_numbers

from data_prep.tokenizers import load_tokenizer
from megatron_davinci.demo import reinforce, run


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "STEPS", 12)
    monkeypatch.setattr(run, "RMT_STEPS", 2)
    monkeypatch.setattr(reinforce, "LESSONS", 64)
    monkeypatch.setattr(run, "MOST_CHARACTERS", 150_000)


def check(out: Path, facts: dict[str, float]) -> None:
    assert facts["last_loss"] < facts["first_loss"] - 0.3
    assert facts["logit_difference"] <= 1e-4
    assert facts["rmt_steps"] == 2 and 0 <= facts["last_match"] <= 1
    for name in (
        "hf/model.safetensors",
        "hf/tokenizer.json",
        "corpus/demo.bin",
        "samples",
        "index.html",
    ):
        assert (out / name).exists(), name
    places = {"run": out / "run", "out/run": out / "run", "toy_language/run": out / "toy_language" / "run"}
    samples = {path.name: path for path in (out / "samples").iterdir()}
    assert check_numbers(out / "index.html", {**places, **samples, "demo": out / "corpus" / "demo"}) > 90


@of_acceptance
def test_a_real_history(pluggy_clone: Path, tmp_path: Path) -> None:
    facts = run.run_demo(pluggy_clone, tmp_path / "out")
    check(tmp_path / "out", facts)
    assert facts["changes"] >= 200 and "generated" not in facts

    from transformers import AutoTokenizer

    exported = AutoTokenizer.from_pretrained(tmp_path / "out" / "hf")
    ours, _ = load_tokenizer(tmp_path / "out" / "model")
    text = "def f(x):\n    return x  # caf\u00e9\n"
    assert exported(text, add_special_tokens=False).input_ids == ours.encode([text])[0]


@of_acceptance
def test_no_history_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "unzipped").mkdir()
    monkeypatch.chdir(tmp_path / "unzipped")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    facts = run.run_demo(None, tmp_path / "out")
    check(tmp_path / "out", facts)
    assert facts["generated"] == facts["samples"] >= 100
    assert "has no git history" in capfd.readouterr().out
    assert not list((tmp_path / "unzipped").iterdir())
