"""The recipe's section for RMT: every choice that the paper leaves open is a field here. Torch-free.

Numbers of equations are the paper's. A tuple of three is easy, medium, hard.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from data_prep import InputError
from megatron_davinci.rmt import EntropyKind
from megatron_davinci.rmt.rewards import Match
from megatron_davinci.section import Positive, Section

Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Three = tuple[NonNegative, NonNegative, NonNegative]


class Budget(Section):
    first: Positive = 800
    """B_0 of Eq. 1, in tokens between <think> and </think>."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.2
    """B_T = gamma * B_0."""
    least: Positive = 1
    """B_min."""


class Difficulty(Section):
    entropy: EntropyKind = "top16"
    """Which entropy the annotation must hold: that of the 16 likeliest tokens, renormalised, or of all."""
    thresholds: Three = (0.5, 1.0, 1.5)
    """Where easy, medium and hard begin, in nats. What lies below is never asked for."""
    quantiles: tuple[Share, Share, Share] | None = None
    """The same as shares that lie below, of the stage's tokens that can be asked for; in place of `thresholds`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, values in (("thresholds", self.thresholds), ("quantiles", self.quantiles or (0, 0, 0))):
            if list(values) != sorted(values):
                raise InputError(f"objective.difficulty.{name} are {values}: they must rise from easy to hard")
        return self


class Curriculum(Section):
    early: Three = (0.6, 0.3, 0.1)
    """Mix of the levels until t1 (Eq. 3)."""
    late: Three = (0.1, 0.3, 0.6)
    """Mix from t2 on (Eq. 4)."""
    begins: Share = 0.3
    """t1 as a share of the stage's steps."""
    ends: Share = 0.7
    """t2 as a share of the stage's steps."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, mix in (("early", self.early), ("late", self.late)):
            if abs(sum(mix) - 1) > 1e-6:
                raise InputError(f"objective.curriculum.{name} is {mix}, which adds up to {sum(mix):g}: it must be 1")
        if self.begins > self.ends:
            raise InputError(
                f"objective.curriculum begins at {self.begins} and ends at {self.ends}: it must begin first"
            )
        return self


class Reward(Section):
    match: Match = "token_exact"
    """When an answer is right; see `rmt.rewards.matches`."""
    length_weight: Share = 0.1
    """w of Eq. 5."""
    largest_length_reward: NonNegative = 1.0
    """r_max of Eq. 2."""
    length_only_where_matched: bool = False
    """Reward the length of right answers alone."""


class Policy(Section):
    kind: Literal["reinforce", "grpo", "dapo"] = "reinforce"
    """reinforce: Eq. 7, exactly on-policy; grpo: ratio and clip; dapo: the same, mean over all tokens."""
    clip_low: NonNegative = 0.2
    """The ratio is clipped below 1 - this."""
    clip_high: NonNegative | None = None
    """The ratio is clipped above 1 + this; where absent 0.2, for dapo 0.28."""
    importance_cap: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Truncated importance sampling: each token weighs min(pi_trainer / pi_rollout, this), for rollouts from an engine
    whose numbers differ from the trainer's. The ratio that is clipped is then taken to the trainer's own policy."""

    @property
    def upper_clip(self) -> float:
        """`clip_high`, or what stands for it."""
        return self.clip_high if self.clip_high is not None else 0.28 if self.kind == "dapo" else 0.2


class MegatronRollouts(Section):
    engine: Literal["megatron"] = "megatron"
    """The trainer's own ranks answer, with its own weights."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens alone, until they have this much together."""
    cache_tokens: Positive = 65536
    """Rows whose keys and values each replica holds at once; what exceeds them waits."""


class Reinforced(Section):
    """What every objective that learns from rollouts has."""

    rollouts: MegatronRollouts | str = MegatronRollouts()
    """Who answers: an engine, or a directory with rollouts to train from, a file for each step: see `davinci rmt ask`.
    An engine's are kept in rollouts/ of the run's directory."""
    responses: Annotated[int, Field(ge=2)] = 8
    """G: responses to each question; one alone has nothing to be better than."""
    response_tokens: Positive = 2048
    """Longest response; those that reach it are cut off."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """At which rollouts are sampled, and their tokens scored."""
    advantage_delta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6
    """delta of Eq. 6."""
    advantage_ddof: Literal[0, 1] = 1
    """What is taken off G in the standard deviation of Eq. 6."""
    policy: Policy = Policy()
    """What is maximised."""
    kl_beta: NonNegative = 0.0
    """beta of Eq. 7; above 0 the policy is held near the reference model."""
    reference: str | None = None
    """Weights of the reference model, as for init_from; where absent, the recipe's init_from. Used where kl_beta is
    above 0; a directory of rollouts must hold its log-probabilities itself."""
    normalization: Literal["paper", "per_component_tokens"] = "paper"
    """paper: RL summed over a response, mean over positions and responses; NTP summed over a document, mean over
    documents. per_component_tokens: each a mean over its own tokens of the whole batch."""
    tree: bool = True
    """Share a document's prefix among all its responses; false: a sequence for each, the slow reference."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.reference is not None and not self.kl_beta:
            raise InputError("objective.reference has nothing to do where kl_beta is 0: leave it out, or raise kl_beta")
        if self.reference is not None and isinstance(self.rollouts, str):
            raise InputError(
                "objective.reference has nothing to do where rollouts come from a directory, whose files hold "
                "reference_log_probs: leave it out"
            )
        return self


class Rmt(Reinforced):
    kind: Literal["rmt"]
    """rmt: reinforcement mid-training, Eq. 9: next-token prediction, and GRPO on chosen tokens."""
    template: str = "suffix_1"
    """The prompt around the text: suffix_N puts the question after it, wrap_N (the paper's) around it."""
    positions: Positive = 1
    """Positions of each document that are asked for, per epoch."""
    budget: Budget | None = Budget()
    """How long the thought should be, by step; null: nobody says, and length is worth nothing (a `free` template)."""
    difficulty: Difficulty = Difficulty()
    """Which positions are easy, medium and hard."""
    curriculum: Curriculum | None = Curriculum()
    """Which of them are asked for, by step; null: any that is difficult enough, whatever its level."""
    reward: Reward = Reward()
    """What a response is worth."""
    ntp_lambda: NonNegative = 0.1
    """lambda of Eq. 9; 0 trains no next token."""
    ntp_context: Literal["document", "trunk"] = "document"
    """With wrap_N, next tokens are predicted in the document by itself, or behind the template's first part."""
    component_norms_every: Annotated[int, Field(ge=0)] = 20
    """Every so many steps the gradient norm of each loss is measured by itself, in two more passes; 0: never."""


class Grpo(Reinforced):
    kind: Literal["grpo"]
    """grpo: problems whose final answer can be verified, as `davinci rmt problems` writes them; a document is one."""
    template: str = "problem_1"
    """The prompt around the problem."""
    budget: ClassVar[None] = None
    reward: ClassVar[Reward] = Reward(length_weight=0.0)  # 1 for a right answer, 0 for another
    ntp_lambda: ClassVar[float] = 0.0
    ntp_context: ClassVar[Literal["document", "trunk"]] = "document"
    component_norms_every: ClassVar[int] = 0  # there is but one loss
    policy: Policy = Policy(kind="grpo")
    """What is maximised."""


Reinforcing = Rmt | Grpo
