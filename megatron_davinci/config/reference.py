"""Every field of a recipe with its explanation, out of the code: `python -m megatron_davinci.config.reference`."""

import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from megatron_davinci.config.megatron_fields import used_fields
from megatron_davinci.config.objectives import ObjectiveOptions
from megatron_davinci.config.recipe import Recipe
from megatron_davinci.config.registries import ENGINES, OBJECTIVES
from megatron_davinci.config.rollouts import RolloutDirectory, RolloutSource
from megatron_davinci.config.section import Section

_COMMON = (
    "model", "init_from", "data.seq_length", "data.stages.name", "data.stages.blend.corpus", "data.stages.blend.repeat",
    "data.stages.epochs", "batch.global_batch_size", "batch.unit", "schedule.lr", "schedule.lr_warmup_fraction",
    "schedule.lr_decay_style", "evaluation.held_out_documents", "checkpoint.dir", "checkpoint.save_interval",
)  # fmt: skip
_COMMON_MEGATRON = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size", "sequence_parallel", "bf16",
    "use_distributed_optimizer", "recompute_granularity",
)  # fmt: skip

_HEAD = """\
# Recipe reference

Made from the code by `python -m megatron_davinci.config.reference`. A recipe is one YAML file; on the command line
`key=value` changes it, with dots for sections and numbers for places in lists: `data.stages.0.epochs=2`. A field
without a default must be given. The recipe as it was resolved lies in every checkpoint. Where a field says
package.module:name, it takes your own class or function: see docs/extending.md. Keys that had another name before are
in docs/renamed.md.
"""


def reference() -> str:
    """Markdown: a table for the recipe and one for each of its sections, then Megatron's fields."""
    parts = [_HEAD, _common(), *_sections("The recipe", Recipe, set())]
    fields = "".join(f"- `{name}`: {annotation}\n" for name, annotation in sorted(used_fields().items()))
    parts.append(
        "## megatron\n\nFields of Megatron-Core's TransformerConfig, OptimizerConfig and DistributedDataParallelConfig "
        f"that training here takes, spelled its way:\n\n{fields}"
    )
    return "\n".join(parts)


def _common() -> str:
    """The keys that nearly every recipe sets, with the first sentence on each."""
    rows = "".join(f"| `{path}` | {_first_sentence(path)} |\n" for path in _COMMON)
    fields = ", ".join(f"`{name}`" for name in _COMMON_MEGATRON)
    return (
        "## Common keys\n\nNearly every recipe sets these; `stages` and `blend` are lists. Of `megatron`, most set\n"
        f"{fields}.\n\n| key | meaning |\n|---|---|\n{rows}"
    )


def _first_sentence(path: str) -> str:
    """The first sentence on a key, with dots between sections."""
    section: type[Section] = Recipe
    text = ""
    for name in path.split("."):
        field = section.model_fields[name]
        section, text = next(_sections_in(field.annotation), section), field.description or ""
    return " ".join(text.split()).partition(". ")[0].rstrip(".")


def _sections(title: str, section: type[Section], told: set[type]) -> Iterator[str]:
    told.add(section)
    rows = "".join(_row(name, field) for name, field in section.model_fields.items())
    yield f"## {title}\n\n| field | type | default | meaning |\n|---|---|---|---|\n{rows}"
    for name, field in section.model_fields.items():
        for inner in _sections_in(field.annotation):
            if inner not in told:
                yield from _sections(_title(name, inner), inner, told)


def _title(name: str, section: type[Section]) -> str:
    """The key, and of several kinds which."""
    tag = next((tag for tag in ("kind", "engine") if tag in section.model_fields), None)
    if name not in ("objective", "rollouts") or tag is None:
        return name
    kind = section.model_fields[tag].default
    return f"{name}: {{{tag}: {kind}}}" if kind else f"{name}: a directory"


def _row(name: str, field: FieldInfo) -> str:
    default = "" if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
    explained = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{name}` | {_type(field.annotation)} | {default} | {explained} |\n"


def _plain(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Section):
        return "see there"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _type(annotation: Any) -> str:
    """In the words of YAML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        several = dict.fromkeys(_type(each) for each in arguments if each is not type(None))
        return " or ".join([*several, *(["null"] if type(None) in arguments else [])])
    if origin in (list, tuple):
        count = len(arguments) if origin is tuple else 1
        return f"list of {count} x {_type(arguments[0])}" if count > 1 else f"list of {_type(arguments[0])}"
    if origin is dict:
        return "fields"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    if annotation is type(None):
        return "null"
    return {"int": "whole number", "float": "number", "str": "text", "bool": "true, false"}[annotation.__name__]


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if annotation is ObjectiveOptions:
        yield from map(OBJECTIVES.get, OBJECTIVES.names())
    elif annotation is RolloutSource:
        yield from [*map(ENGINES.get, ENGINES.names()), RolloutDirectory]
    elif isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _sections_in(inner)


if __name__ == "__main__":
    print(reference(), end="")
