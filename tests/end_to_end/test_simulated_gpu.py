"""Property: where a GPU cannot train a recipe, one sentence says why, before anything is built or written.

torch is told that there is a GPU: what it answers when it is asked about one is patched, nothing runs on it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from data_prep import InputError
from megatron_davinci.core import transformer_impl
from megatron_davinci.core.transformer_impl import check_transformer_impl
from megatron_davinci.models.parallel_layout import MegatronOptions

SIMULATED = """
import torch, types
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.current_device = lambda: 0
torch.cuda.set_device = lambda *_: None
torch.cuda.get_device_name = lambda *_: "Simulated"
torch.cuda.get_device_capability = lambda *_: {capability}
torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(uuid="GPU-1", total_memory=80 << 30)
torch.backends.cuda.is_flash_attention_available = lambda: {flash}
from megatron_davinci.core import device, transformer_impl
device.backend = lambda: "gloo"
transformer_impl.find_spec = lambda name: {engine} or None
from megatron_davinci.cli import main
main()
"""
HOPPER = {"capability": (9, 0), "flash": True}


def refuse(
    folder: Path, recipe: dict[str, Any], machine: dict[str, Any], engine: bool = False, ranks: int = 1
) -> list[str]:
    """What training says on a machine with such a GPU; `engine`: Transformer Engine is found there."""
    path, program = folder / "recipe.yaml", folder / "simulated.py"
    path.write_text(yaml.safe_dump(recipe))
    program.write_text(SIMULATED.format(**machine, engine=engine))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    command = [sys.executable, str(program), "train", str(path)]
    if ranks > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == (2 if ranks == 1 else 1) and not (folder / "run").exists(), done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said and (ranks > 1 or done.stderr.count("\n") == 1), done.stderr
    return said


BF16, FP32 = {"bf16": True}, {"bf16": False}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool, str]] = {
    "no Transformer Engine": (
        {**BF16, "transformer_impl": "transformer_engine"}, HOPPER, False,
        "transformer_impl is transformer_engine, which is not installed: install the extra 'gpu', or set it to local"),
    "no kernel in this torch": (
        BF16, {**HOPPER, "flash": False}, False,
        "Megatron's local layers attend by torch's flash attention, and torch .* was built without it: install the "
        "extra 'gpu', or hide the GPU with CUDA_VISIBLE_DEVICES="),
    "no kernel for this GPU": (
        BF16, {**HOPPER, "capability": (7, 5)}, False,
        r"and Simulated has compute capability \(7, 5\), it needs \(8, 0\): install the extra 'gpu', or hide the GPU"),
    "fp32": (
        FP32, HOPPER, False, "which takes bf16 alone, and the recipe trains in fp32: set megatron.bf16, or install"),
    "fp32, told to be local": (
        {**FP32, "transformer_impl": "local"}, HOPPER, True,
        "the recipe trains in fp32: set megatron.bf16, or leave megatron.transformer_impl out"),
    "FP8 in local layers": (
        {**BF16, "fp8": "hybrid", "fp8_recipe": "tensorwise", "transformer_impl": "local"}, HOPPER, True,
        "FP8 is computed by Transformer Engine's layers alone, and these are local ones: train with megatron.fp8=null"),
    "a choice of Transformer Engine's": (
        {**BF16, "attention_backend": "fused"}, HOPPER, False,
        "attention_backend chooses among Transformer Engine's kernels, and the layers here are Megatron's local ones"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_gpu_cannot_train_is_said(recipe_values: dict[str, Any], tmp_path: Path, case: str) -> None:
    megatron, machine, engine, sentence = CASES[case]
    [said] = refuse(tmp_path, {**recipe_values, "megatron": megatron}, machine, engine)
    assert re.search(sentence, said), said


@pytest.mark.parametrize(
    ("megatron", "heads", "sentence"),
    [
        (FP32, 16, "trees, and responses that are written, attend by torch's flash attention, which takes bf16 alone"),
        (BF16, 12, "a multiple of 8 up to 256, and the model's are 12 wide: leave them out"),
        (BF16, 16, None),
    ],
)
def test_trees_need_torch_s_kernel_under_transformer_engine_too(
    monkeypatch: pytest.MonkeyPatch, megatron: dict[str, Any], heads: int, sentence: str | None
) -> None:
    for name, value in {"is_available": True, "get_device_capability": (9, 0), "get_device_name": "Simulated"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(transformer_impl, "find_spec", lambda name: True)
    options = MegatronOptions.of(megatron)
    model: Any = SimpleNamespace(kv_channels=heads)
    assert transformer_impl.transformer_impl(options) == "transformer_engine"
    check_transformer_impl(options, model, trees=False)
    if sentence is None:
        check_transformer_impl(options, model, trees=True)
        return
    with pytest.raises(InputError, match=sentence):
        check_transformer_impl(options, model, trees=True)


def test_ranks_that_share_a_gpu_are_named(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    """Eight ranks where one GPU is visible all took it, and hung in NCCL; two stand for them."""
    said = refuse(tmp_path, {**recipe_values, "megatron": BF16}, HOPPER, ranks=2)
    assert all("ranks 0 and 1 have Simulated GPU-1 of " in line for line in said), said
    assert all("start one rank for each GPU of a node" in line for line in said)
