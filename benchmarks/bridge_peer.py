"""Megatron-Bridge as a program: `bridge_peer.py to-megatron HF OUT`, `bridge_peer.py to-hf CHECKPOINT HF OUT`.

Run by an environment of its own (README.md). The conversion is Bridge's, with its defaults; the rest is what it takes
to have it run without a GPU. Prints the seconds of the conversion alone, without imports.
"""

import builtins
import sys
import time
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

_TRITON_USER = "megatron.core.inference.contexts.attention_context.triton.tensor_ops"
_import = builtins.__import__


class _Nothing(types.ModuleType):
    """transformer_engine as Bridge's imports want it: names that are classes, nothing that runs."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name) if name in ("pytorch", "ops") else type(name, (), {})


def _import_without_gpu(
    name: str,
    globals: Any = None,
    locals: Any = None,
    fromlist: Any = (),
    level: int = 0,  # its names
) -> Any:
    """Two imports are unguarded: of transformer_engine in megatron.bridge.peft, and of triton in one module."""
    importer = (globals or {}).get("__name__") or ""
    if level == 0 and name.split(".")[0] == "transformer_engine" and importer.startswith("megatron.bridge.peft."):
        module: Any = _Nothing("transformer_engine")
        for part in name.split(".")[1:] if fromlist else ():
            module = getattr(module, part)
        return module
    if level == 0 and name.split(".")[0] == "triton" and importer == _TRITON_USER:
        return MagicMock()
    return _import(name, globals, locals, fromlist, level)


def _prepare() -> None:
    """Local layers in the place of transformer_engine's, with the norms' names that they have; no torch.cuda."""
    builtins.__import__ = _import_without_gpu
    import torch
    from megatron.bridge.models import gpt_provider
    from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
    from megatron.bridge.models.conversion.param_mapping import AutoMapping
    from megatron.bridge.models.qwen.qwen2_bridge import Qwen2Bridge

    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment, return-value]
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    gpt_provider.transformer_engine_layer_spec = gpt_provider.local_layer_spec
    known = Qwen2Bridge.mapping_registry
    norms = {"input_layernorm": "input_layernorm", "pre_mlp_layernorm": "post_attention_layernorm"}
    Qwen2Bridge.mapping_registry = lambda self: MegatronMappingRegistry(
        *known(self).get_all_mappings(),
        *(AutoMapping(f"decoder.layers.*.{a}.weight", f"model.layers.*.{b}.weight") for a, b in norms.items()),
    )


def _to_megatron(source: Path, out: Path) -> None:
    """import_ckpt, but for the tokenizer, which there is none of."""
    import torch.distributed as dist
    from megatron.bridge import AutoBridge

    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)  # it would start NCCL
    bridge = AutoBridge.from_hf_pretrained(str(source))
    model = bridge.to_megatron_model(wrap_with_ddp=False, use_cpu_initialization=True)
    bridge.save_megatron_model(model, str(out), low_memory_save=True)


def _to_hf(checkpoint: Path, original: Path, out: Path) -> None:
    from megatron.bridge import AutoBridge

    bridge = AutoBridge.from_hf_pretrained(str(original))
    bridge.hf_pretrained.save_artifacts = lambda path, **_: bridge.hf_pretrained.config.save_pretrained(path)
    bridge.export_ckpt(str(checkpoint), str(out), show_progress=False)


if __name__ == "__main__":
    _prepare()
    start = time.perf_counter()
    direction, *paths = sys.argv[1:]
    (_to_megatron if direction == "to-megatron" else _to_hf)(*map(Path, paths))
    print(f"seconds {time.perf_counter() - start}")
