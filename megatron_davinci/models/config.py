"""A model's shape, read from a Hugging Face config.json: of a preset of this package, or of a directory. Torch-free."""

from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import orjson

from data_prep import InputError
from data_prep.io.files import read_json, refuse_link_outside
from data_prep.io.hub import HUB_CONFIG_FILES, found_path, is_hub_name
from data_prep.io.registry import nearest
from megatron_davinci.models.families import FAMILIES, Family, Mapping
from megatron_davinci.models.rope import RopeScaling, read_rope
from megatron_davinci.models.sizes import ModelSizes

_PRESETS = files("megatron_davinci") / "presets"
_KINDS: dict[type, str] = {dict: "an object, or null", bool: "true or false"}
_SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
          "head_dim", "vocab_size", "max_position_embeddings")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ModelSizes):
    """A model's sizes, its family, and what else its config.json says; `huggingface` is that file as it was read."""

    family: Family
    max_position_embeddings: int
    rotary_base: float
    rope_scaling: RopeScaling | None
    """None for plain RoPE."""
    layernorm_epsilon: float
    init_method_std: float
    huggingface: dict[str, Any] = field(repr=False)

    @classmethod
    def from_huggingface(cls, config: dict[str, Any], origin: str) -> Self:
        """Raises InputError, naming `origin`, for an unknown family or a missing or unsupported field."""
        if not isinstance(config, dict):
            raise InputError(f"{origin} is no model's configuration: it must be an object of fields")
        family = FAMILIES.get(str(config.get("model_type", "")))
        if family is None:
            raise InputError(f"{origin} has model_type {config.get('model_type')!r}; known: {', '.join(FAMILIES)}")
        for name, kind in {"rope_scaling": dict, "rope_parameters": dict, "tie_word_embeddings": bool}.items():
            if not isinstance(config.get(name), kind | None):
                raise InputError(f"{origin} has {name} {config[name]!r}; it must be {_KINDS[kind]}")
        if config.get("quantization_config") is not None:
            raise InputError(
                f"{origin} has a quantization_config: weights are read in full precision alone. Take the model that it "
                "was made from, or remove the entry where the weights are full"
            )
        for name, value in family.requires.items():
            if config.get(name, value) != value:
                raise InputError(f"{origin} has {name} {config[name]!r}; for {family.model_type} it must be {value!r}")
        if config.get("use_sliding_window"):
            raise InputError(f"{origin} uses sliding-window attention; set use_sliding_window to false")
        if config.get("hidden_act", "silu") != "silu":
            raise InputError(f"{origin} has hidden_act {config['hidden_act']!r}; {family.model_type} needs silu")
        try:
            _check_numbers(config, origin)
            theta, rope_scaling = read_rope(config, origin)
            heads = config["num_attention_heads"]
            return cls(
                family=family,
                add_qkv_bias=family.megatron["add_qkv_bias"],
                qk_layernorm=family.megatron["qk_layernorm"],
                num_layers=config["num_hidden_layers"],
                hidden_size=config["hidden_size"],
                ffn_hidden_size=config["intermediate_size"],
                num_attention_heads=heads,
                num_query_groups=config.get("num_key_value_heads") or heads,
                kv_channels=config.get("head_dim") or config["hidden_size"] // heads,
                vocab_size=config["vocab_size"],
                max_position_embeddings=config.get("max_position_embeddings", 32768),
                rotary_base=_rotary_base(theta, origin),
                rope_scaling=rope_scaling,
                layernorm_epsilon=config["rms_norm_eps"],
                tied_embeddings=bool(config.get("tie_word_embeddings", False)),
                init_method_std=config.get("initializer_range", 0.02),
                huggingface=config,
            )
        except KeyError as missing:
            raise InputError(f"{origin} has no field {missing}") from None

    @property
    def mappings(self) -> list[Mapping]:
        """The family's mappings that this model has: none for the output layer where embeddings are tied."""
        return [m for m in self.family.mappings if not (self.tied_embeddings and m.megatron == "output_layer.weight")]

    def architecture(self) -> dict[str, Any]:
        """What determines the meaning of weights: two models that agree here can exchange them."""
        ignored = (
            "add_qkv_bias",
            "family",
            "huggingface",
            "init_method_std",
            "max_position_embeddings",
            "qk_layernorm",
        )
        sizes = {
            "rope_scaling_factor" if name == "rope_scaling" else name: value
            for name, value in ((each.name, getattr(self, each.name)) for each in fields(self))
            if name not in ignored
        }
        sizes["layernorm_epsilon"] = float(f"{self.layernorm_epsilon:.6g}")  # some store it as 32 bits
        if self.rope_scaling is not None and self.rope_scaling.is_llama3:
            sizes["rope_scaling_factor"] = self.rope_scaling.factor  # as checkpoints of earlier versions have it
        return {"model_type": self.family.model_type, **sizes}


_MAY_BE_NULL = ("num_key_value_heads", "head_dim")
_LARGEST_SIZE = 1 << 28  # above every model's, and below what would end this machine
_LARGEST_BASE = 1e15


def _rotary_base(value: Any, origin: str) -> float:
    if type(value) not in (int, float) or not 1 <= value <= _LARGEST_BASE or value != int(value):
        raise InputError(f"{origin} has rope_theta {value!r}; Megatron-Core takes a whole number from 1 on, to 1e15")
    return float(value)


def _check_numbers(config: dict[str, Any], origin: str) -> None:
    """Raise InputError for a size that is none, and for heads that cannot be sharded or turned."""
    for name in _SIZES:
        value = config.get(name)
        if name not in config or (value is None and name in _MAY_BE_NULL):
            continue
        if type(value) is not int or not 1 <= value <= _LARGEST_SIZE:
            raise InputError(f"{origin} has {name} {value!r}; it must be a whole number from 1 to {_LARGEST_SIZE:,}")
    std = config.get("initializer_range", 0.02)
    if type(std) not in (int, float) or not 0 < std < 10:
        raise InputError(f"{origin} has initializer_range {std!r}; it must be a positive number below 10")
    epsilon = config["rms_norm_eps"]
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise InputError(f"{origin} has rms_norm_eps {epsilon!r}; it must be a small positive number")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    groups, width = config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads
    if heads % groups:
        raise InputError(f"{origin} has {heads} heads for {groups} key-value heads: the first must be a multiple")
    if width < 2 or width % 2:
        raise InputError(f"{origin} has a head_dim of {width}: RoPE turns pairs, so it must be even")


def preset_names() -> list[str]:
    """The presets of this package."""
    return sorted(path.name.removesuffix(".json") for path in _PRESETS.iterdir())


def _config_from_hub(name: str) -> Path:
    """Where a model's config.json lies here. Raises InputError, which names the preset that the model may be."""
    try:
        return found_path(name, HUB_CONFIG_FILES)
    except InputError as error:
        preset = name.partition("/")[2].partition("@")[0].lower()
        raise InputError(f"{error}; or give the preset {preset}" if preset in preset_names() else str(error)) from None


def load_model_config(model: str) -> ModelConfig:
    """The shape of a preset, of a Hugging Face directory, or of a model on its hub."""
    if is_hub_name(model):
        model = str(_config_from_hub(model))
    if (Path(model) / "config.json").is_file():
        return ModelConfig.from_huggingface(
            read_json(refuse_link_outside(Path(model) / "config.json")), f"{model}/config.json"
        )
    preset = _PRESETS / f"{model}.json"
    if not preset.is_file():
        hint = nearest(model.lower(), preset_names())
        raise InputError(
            f"model '{model}' is neither a directory with a config.json, nor OWNER/NAME on the Hugging Face hub, nor a "
            f"preset ({', '.join(preset_names())}){hint}; a relative path lies in the recipe's folder, or in "
            f"{Path.cwd()}"
        )
    return ModelConfig.from_huggingface(orjson.loads(preset.read_bytes()), f"preset {model}")
