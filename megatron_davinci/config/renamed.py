"""Recipe keys that have another name now: the old one is refused with the new one. See docs/renamed.md. Torch-free."""

from collections.abc import Sequence

# (section, old key) -> new key; a dot leads into a section below, ^ out of the section. The recipe's top is section "".
RENAMED_KEYS = {
    ("", "faults"): "fault_tolerance",
    ("faults", "skipped_steps"): "max_skipped_steps",
    ("faults", "watchdog_seconds"): "watchdog_timeout",
    ("fault_tolerance", "skipped_steps"): "max_skipped_steps",
    ("fault_tolerance", "watchdog_seconds"): "watchdog_timeout",
    ("batch", "global_size"): "global_batch_size",
    ("schedule", "warmup_fraction"): "lr_warmup_fraction",
    ("schedule", "warmup_steps"): "lr_warmup_iters",
    ("schedule", "decay"): "lr_decay_style",
    ("evaluation", "every_steps"): "eval_interval",
    ("evaluation", "held_out"): "held_out_documents",
    ("checkpoint", "every_steps"): "save_interval",
    ("checkpoint", "keep"): "save_total_limit",
    ("checkpoint", "keep_every"): "save_retain_interval",
    ("checkpoint", "asynchronous"): "async_save",
    ("objective", "responses"): "group_size",
    ("objective", "response_tokens"): "max_tokens",
    ("objective", "positions"): "positions_per_document",
    ("objective", "tree"): "share_prefix",
    ("objective", "component_norms_every"): "component_norms_interval",
    ("objective", "advantage_delta"): "paper.advantage_delta",
    ("objective", "advantage_ddof"): "paper.advantage_ddof",
    ("objective", "ntp_context"): "paper.ntp_context",
    ("budget", "first"): "initial",
    ("budget", "least"): "min",
    ("curriculum", "begins"): "start",
    ("curriculum", "ends"): "end",
    ("reward", "match"): "grader",
    ("reward", "length_only_where_matched"): "length_only_if_correct",
    ("reward", "largest_length_reward"): "^paper.max_length_reward",
    ("policy", "importance_cap"): "importance_ratio_cap",
}


def new_name(path: Sequence[int | str]) -> str | None:
    """The new name of the key at `path` in the recipe, with its sections; None for a key that was never known."""
    sections = [part for part in path[:-1] if isinstance(part, str)]
    new = RENAMED_KEYS.get((sections[-1] if sections else "", str(path[-1])))
    if new is None:
        return None
    outer = path[:-2] if new.startswith("^") else path[:-1]
    return ".".join([*map(str, outer), new.removeprefix("^")])
