"""Every extension point that a recipe can name, in one place. Torch-free.

Each registry maps a name to a member, or to its import path, which is imported when it is needed. A recipe may also
give a path of your own, "package.module:name". What a member must be is said beside its registry; the sample formats
and the sources of changes of `davinci data` are `data_prep.samples.formats.SAMPLE_FORMATS` and
`data_prep.sources.registry.SOURCES`.
"""

from typing import Any

from data_prep.io.registry import Registry

OBJECTIVES: Registry[Any] = Registry(
    "objective",
    {
        "ntp": "megatron_davinci.config.objectives:Ntp",
        "rmt": "megatron_davinci.config.objectives:Rmt",
        "grpo": "megatron_davinci.config.objectives:Grpo",
        "rlp": "megatron_davinci.rl.objectives.rlp:Rlp",
    },
    subclass_of="megatron_davinci.config.objectives:ObjectiveOptions",
)
"""Subclasses of `config.objectives.ObjectiveOptions`: the recipe's section, and what carries it out."""

ENGINES: Registry[Any] = Registry(
    "rollout engine",
    {
        "megatron": "megatron_davinci.config.rollouts:MegatronRollouts",
        "vllm": "megatron_davinci.config.rollouts:VllmRollouts",
    },
    subclass_of="megatron_davinci.config.rollouts:EngineOptions",
)
"""Subclasses of `config.rollouts.EngineOptions`: the recipe's section, and the engine (`rl.engines.base.Engine`)."""

POLICY_LOSSES: Registry[Any] = Registry(
    "policy loss",
    {
        "reinforce": "megatron_davinci.core.losses.policy:REINFORCE",
        "grpo": "megatron_davinci.core.losses.policy:GRPO",
        "dapo": "megatron_davinci.core.losses.policy:DAPO",
        "dr_grpo": "megatron_davinci.core.losses.policy:DR_GRPO",
        "gspo": "megatron_davinci.core.losses.policy:GSPO",
    },
    instance_of="megatron_davinci.core.losses.policy:PolicyLoss",
)
"""Instances of `core.losses.policy.PolicyLoss`."""

KL_ESTIMATORS: Registry[Any] = Registry(
    "KL estimator", {name: f"megatron_davinci.core.losses.policy:kl_{name}" for name in ("k3", "k2")}
)
"""Functions (log_probs, reference_log_probs), both (N,) in nats -> (N,), whose mean estimates KL(pi || pi_ref)."""

GRADERS: Registry[Any] = Registry(
    "grader",
    {
        name: f"megatron_davinci.rl.rewards:{name}"
        for name in ("token_exact", "byte_prefix", "first_token", "strip_casefold")
    },
    instance_of="megatron_davinci.rl.rewards:TokenGrader",
)
"""Instances of `rl.rewards.TokenGrader`, of objective rmt."""

PROBLEM_GRADERS: Registry[Any] = Registry("problem grader", {"math": "megatron_davinci.rl.math_grader:are_equal"})
"""Functions of objective grpo: (truth, answer) pairs -> a dict with True for each pair that is the same."""
