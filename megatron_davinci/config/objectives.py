"""The recipe's section `objective`: what is minimized. Every choice that the RMT paper leaves open is a field here.

Numbers of equations are the paper's. A tuple of three is easy, medium, hard. Torch-free.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from data_prep import InputError
from megatron_davinci.config.registered import options_of
from megatron_davinci.config.registries import (
    GRADERS,
    KL_ESTIMATORS,
    OBJECTIVES,
    POLICY_LOSSES,
    PROBLEM_GRADERS,
)
from megatron_davinci.config.rollouts import MegatronRollouts, RolloutsSection
from megatron_davinci.config.section import NameOrFile, Positive, Section, WeightsPath

EntropyKind = Literal["top16", "full"]
"""Entropy of the 16 likeliest tokens, renormalized, or of all tokens."""
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Three = tuple[NonNegative, NonNegative, NonNegative]


def _named_in(registry: Any) -> BeforeValidator:
    """The field is the name of a member, or an import path that works."""

    def check(value: Any) -> Any:
        if isinstance(value, str):
            registry.check(value)
        return value

    return BeforeValidator(check)


class ObjectiveOptions(Section):
    """The section of one objective. A subclass of your own adds fields, and names the classes that carry it out."""

    kind: str
    inputs_class: ClassVar[str] = "megatron_davinci.data.objective:ObjectiveInputs"
    """Import path of what opens and checks its inputs: a subclass of `data.objective.ObjectiveInputs`. Torch-free."""
    objective_class: ClassVar[str]
    """Import path of what makes its global batches: a subclass of `core.objective.Objective`."""
    required: ClassVar[tuple[str, ...]] = ("objective_class",)
    """What a subclass must set, as a field or as a class attribute."""

    @property
    def grows_trees(self) -> bool:
        """Whether rows of trees are computed, or responses written: on a GPU torch's own kernel attends for them."""
        return False

    def check_stage(self, stage: Any) -> None:
        """Raise InputError where a `StageRecipe` cannot be trained so."""

    def sources_of_weights(self) -> dict[str, str]:
        """Key of the recipe -> directory of weights that the objective loads beside the model's own."""
        return {}

    def check_recipe(self, init_from: str | None) -> None:
        """Raise InputError where the objective lacks something that the whole recipe must say."""


class Ntp(ObjectiveOptions):
    kind: str = "ntp"
    """ntp: next-token prediction, the mean over all labels of the global batch."""
    objective_class: ClassVar[str] = "megatron_davinci.core.next_token:NextTokenObjective"


class Budget(Section):
    initial: Positive = 800
    """B_0 of Eq. 1, in tokens between <think> and </think>."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.2
    """B_T = gamma * B_0."""
    min: Positive = 1
    """B_min."""


class Difficulty(Section):
    entropy: EntropyKind = "top16"
    """The entropy that the annotation must hold: of the 16 likeliest tokens, renormalized, or of all."""
    thresholds: Three = (0.5, 1.0, 1.5)
    """Where easy, medium and hard start, in nats. What lies below is never asked for."""
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
    start: Share = 0.3
    """t1 as a share of the stage's steps."""
    end: Share = 0.7
    """t2 as a share of the stage's steps."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, mix in (("early", self.early), ("late", self.late)):
            if abs(sum(mix) - 1) > 1e-6:
                raise InputError(f"objective.curriculum.{name} is {mix}, which adds up to {sum(mix):g}: it must be 1")
        if self.start > self.end:
            raise InputError(f"objective.curriculum.start is {self.start} and end {self.end}: it must start first")
        return self


class Reward(Section):
    grader: Annotated[str, _named_in(GRADERS)] = "token_exact"
    """When an answer is correct: token_exact, byte_prefix, first_token, strip_casefold, or package.module:name of your
    own; see `rl/rewards.py`."""
    length_weight: Share = 0.1
    """w of Eq. 5."""
    length_only_if_correct: bool = False
    """Reward the length of correct answers alone."""


class Paper(Section):
    """What the RMT paper leaves open, and nobody has needed another value for."""

    advantage_delta: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-6
    """delta of Eq. 6, whose value the paper does not give."""
    advantage_ddof: Literal[0, 1] = 1
    """What is taken off G in the standard deviation of Eq. 6: the paper does not say which deviation it takes."""
    max_length_reward: NonNegative = 1.0
    """r_max of Eq. 2, whose value the paper does not give."""
    ntp_context: Literal["document", "prefix"] = "document"
    """With a wrap_N template: are next tokens predicted in the document by itself, or behind the template's first
    part? The paper does not say."""


class Policy(Section):
    kind: Annotated[str, _named_in(POLICY_LOSSES)] = "reinforce"
    """reinforce: Eq. 7, exactly on-policy; grpo: ratio and clip; dapo: the same, mean over all tokens; dr_grpo: grpo,
    where neither a response's length nor the deviation of its group's rewards divides; gspo: one ratio for a whole
    response; or package.module:name of your own, a `core.losses.policy.PolicyLoss`."""
    clip_low: Share | None = None
    """The ratio is clipped below 1 - this; where absent 0.2, for gspo 0.0003."""
    clip_high: NonNegative | None = None
    """The ratio is clipped above 1 + this; where absent 0.2, for dapo 0.28, for gspo 0.0004."""
    importance_ratio_cap: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Truncated importance sampling: each token weighs min(pi_trainer / pi_rollout, this), for rollouts from an engine
    whose numbers differ from the trainer's. The ratio that is clipped is then taken to the trainer's own policy."""


def _read_objective(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return options_of(OBJECTIVES, "kind", ObjectiveOptions, {"kind": "ntp", **value})


ObjectiveSection = Annotated[SerializeAsAny[ObjectiveOptions], BeforeValidator(_read_objective)]
OptionalObjectiveSection = Annotated[SerializeAsAny[ObjectiveOptions] | None, BeforeValidator(_read_objective)]


class RolloutOptions(ObjectiveOptions):
    """What every objective that learns from rollouts has."""

    inputs_class: ClassVar[str] = "megatron_davinci.rl.inputs:RolloutInputs"
    objective_class: ClassVar[str] = "megatron_davinci.rl.objectives.rollout:RolloutObjective"
    prompt_source_class: ClassVar[str]
    """Import path of what says which prompts there are, a subclass of `rl.prompt_source.PromptSource`."""
    graded_when_sampled: ClassVar[bool] = False
    """Rollout files hold whether each response is correct: the document cannot tell."""

    rollouts: RolloutsSection = MegatronRollouts()
    """Who answers: an engine, or a directory with rollouts to train from, a file for each step: see
    `davinci rmt prompts`. An engine's are kept in rollouts/ of the run's directory."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """G: responses to each prompt; one alone has nothing to be better than."""
    max_tokens: Positive = 2048
    """Longest response; those that reach it are cut off."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Temperature at which rollouts are sampled, and their tokens scored."""
    policy: Policy = Policy()
    """What is maximized."""
    kl_beta: NonNegative = 0.0
    """beta of Eq. 7; above 0 the policy is held near the reference model."""
    chat_template: bool = False
    """The prompt is a user's message in the chat template of the tokenizer, for models that were trained to chat, such
    as R1-Distill and Qwen3."""
    stop_at_answer: bool = False
    """A response ends behind the token in which the first balanced \\boxed{} after </think> closes, and that box is the
    answer; false: it goes on to a stop token, and the last box is."""
    dynamic_sampling: Annotated[int, Field(ge=0)] = 0
    """How often, at most, a prompt is answered anew whose responses are all right or all wrong, as DAPO has it; what
    is left then stays. Needs an engine, whose responses come from the very policy that is trained."""
    mask_truncated_completions: bool = False
    """A response that was cut off at max_tokens is not trained on, though it counts in its group's mean."""
    kl_estimator: Annotated[str, _named_in(KL_ESTIMATORS)] = "k3"
    """How the KL divergence is estimated for each token. k3: GRPO's; its gradient is that of KL(reference || policy).
    k2: its gradient is that of KL(policy || reference), as Eq. 7 has it. Or package.module:name of a function."""
    kl_all_groups: bool = False
    """The KL term acts in every group, as Eq. 7 has it; false: not where rewards do not differ, which saves those
    responses."""
    reference: WeightsPath | None = None
    """Weights of the reference model, as for init_from; where absent, the recipe's init_from. Used where kl_beta is
    above 0; a directory of rollouts must hold its log-probabilities itself."""
    normalization: Literal["paper", "per_component_tokens"] = "paper"
    """paper: RL summed over a response, mean over positions and responses; NTP summed over a document, mean over
    documents. per_component_tokens: each a mean over its own tokens of the whole batch."""
    share_prefix: bool = True
    """Compute a document's prefix once for all its responses; false: a sequence for each, the slow reference."""
    paper: Paper = Paper()
    """What the paper leaves open, and nobody has needed another value for."""

    required: ClassVar[tuple[str, ...]] = (
        "prompt_source_class", "template", "budget", "reward", "ntp_lambda", "component_norms_interval"
    )  # fmt: skip
    """What a subclass must set, as a field or as a class attribute."""
    if TYPE_CHECKING:
        template: str
        budget: Budget | None
        reward: Reward
        ntp_lambda: float
        component_norms_interval: int

    @property
    def has_engine(self) -> bool:
        """Whether an engine answers; else the rollouts are files."""
        return self.rollouts.engine is not None

    @property
    def grows_trees(self) -> bool:
        """Whether documents are computed once for all their responses, or responses written."""
        return self.share_prefix or self.has_engine

    @property
    def scores_reference(self) -> bool:
        """Whether the reference model is loaded here; files hold its log-probabilities themselves."""
        return self.kl_beta > 0 and self.has_engine

    def check_stage(self, stage: Any) -> None:
        """Raise InputError where a stage is set up as its trees cannot be."""
        where = f"stage {stage.name}: objective {self.kind}"
        if stage.layout.context > 1:
            raise InputError(
                f"{where} with context_parallel_size {stage.layout.context}: the rows of a tree cannot be "
                "sharded so; set it to 1 for this stage"
            )
        if stage.megatron.fp8:
            raise InputError(
                f"{where} with fp8: the rows of trees and of answers are no multiples of what FP8 takes; set the "
                "stage's megatron.fp8 to null"
            )
        if stage.long_documents == "split":
            raise InputError(
                f"{where} needs whole documents, long_documents is split: set the stage's to error or drop"
            )
        if stage.batch.unit != "samples" or stage.plan is not None:
            raise InputError(
                f"{where} takes documents with the responses to them, which no plan packs: set batch.unit to samples, "
                "and no plan"
            )

    def sources_of_weights(self) -> dict[str, str]:
        """The reference model's, where one is named."""
        return {} if self.reference is None else {"objective.reference": self.reference}

    def check_recipe(self, init_from: str | None) -> None:
        """Raise InputError where a reference model is needed, and no weights are named."""
        if self.scores_reference and self.reference is None and init_from is None:
            raise InputError(
                f"objective.kl_beta is {self.kl_beta}, and no weights are named to stay near: set objective.reference "
                "or init_from, or kl_beta to 0"
            )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dynamic_sampling and (not self.has_engine or self.rollouts.lag_limit()):
            raise InputError(
                f"objective.dynamic_sampling is {self.dynamic_sampling}, which asks the present policy again, and "
                "rollouts come from a directory or from an older policy: set it to 0, or take an engine without max_lag"
            )
        if self.reference is not None and not self.kl_beta:
            raise InputError("objective.reference has nothing to do where kl_beta is 0: leave it out, or raise kl_beta")
        if self.reference is not None and not self.has_engine:
            raise InputError(
                "objective.reference has nothing to do where rollouts come from a directory, whose files hold "
                "reference_log_probs: leave it out"
            )
        return self


class Rmt(RolloutOptions):
    prompt_source_class: ClassVar[str] = "megatron_davinci.rl.prompt_source:NextTokenPrompts"
    stop_at_answer: bool = True
    """A response ends behind the token in which the first balanced \\boxed{} after </think> closes: the policy would
    else unlearn to stop, since what follows is worth nothing. false: it goes on, and the last box is the answer."""
    kind: str = "rmt"
    """rmt: reinforcement mid-training, Eq. 9: next-token prediction, and GRPO on chosen tokens."""
    template: NameOrFile = "suffix_1"
    """The prompt around the text: suffix_N puts the question after it, wrap_N (the paper's) around it; or a text file
    of your own, with {text}, {budget} and at its end <think> and a newline."""
    positions_per_document: Positive = 1
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
    component_norms_interval: Annotated[int, Field(ge=0)] = 20
    """Every so many steps the gradient norm of each loss is measured by itself, in two more passes; 0: never."""


class Grpo(RolloutOptions):
    prompt_source_class: ClassVar[str] = "megatron_davinci.rl.problems:ProblemPrompts"
    graded_when_sampled: ClassVar[bool] = True
    kind: str = "grpo"
    """grpo: problems whose final answer can be verified, as `davinci rmt problems` writes them; a document is one."""
    template: NameOrFile = "problem_1"
    """The prompt around the problem; or a text file of your own, with {text} and at its end <think> and a newline."""
    grader: Annotated[str, _named_in(PROBLEM_GRADERS)] = "math"
    """When two final answers are the same: math (math-verify), or package.module:name of your own function."""
    budget: ClassVar[None] = None  # type: ignore[misc]
    reward: ClassVar[Reward] = Reward(length_weight=0.0)  # type: ignore[misc]  # 1 for a correct answer, 0 for another
    ntp_lambda: ClassVar[float] = 0.0  # type: ignore[misc]
    component_norms_interval: ClassVar[int] = 0  # type: ignore[misc]  # there is but one loss
    policy: Policy = Policy(kind="grpo")
    """What is maximized."""

    @model_validator(mode="after")
    def _check_paper(self) -> Self:
        for name in ("max_length_reward", "ntp_context"):
            if name in self.paper.model_fields_set:
                raise InputError(f"objective.paper.{name} has nothing to do in objective {self.kind}: leave it out")
        return self
