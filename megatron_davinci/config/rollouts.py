"""The recipe's section `objective.rollouts`: who answers prompts. Torch-free."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator

from data_prep import InputError
from megatron_davinci.config.registered import options_of, parse_section
from megatron_davinci.config.registries import ENGINES
from megatron_davinci.config.section import InputPath, PathText, Positive, Section
from megatron_davinci.serve.command import OURS, UNPROVEN, is_among
from megatron_davinci.serve.environment import DEFAULT_DIRECTORY, check_servable, find_environment


class RolloutSource(Section):
    """Where rollouts come from."""

    engine: str | None
    engine_class: ClassVar[str]
    """Import path of the engine, a subclass of `rl.engines.base.Engine`; files have none."""
    top_p: float | None = None

    def lag_limit(self) -> int | None:
        """How many steps older than the trained policy the one that answers may be; None: any number."""
        return None

    def log_prob_limit(self, bf16: bool) -> float | None:
        """Mean absolute difference in nats between the engine's log-probabilities and the trainer's at which a run
        stops; None: never."""
        return None


class RolloutDirectory(RolloutSource):
    engine: None = None
    """No engine: the rollouts are files."""
    directory: Annotated[InputPath, Field(min_length=1)]
    """Directory of rollouts, a file for each step: see `davinci rmt prompts`."""
    top_p: None = None
    """Not known of files."""


class EngineOptions(RolloutSource):
    """The section of one rollout engine. A subclass of your own adds fields, and names the class of the engine."""

    engine: str
    required: ClassVar[tuple[str, ...]] = ("engine_class",)
    """What a subclass must set."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens alone, until they have this much together."""
    rounds_otherwise: ClassVar[bool] = False
    """Whether its kernels are others than the trainer's: in bf16 their log-probabilities are then not the same."""

    def lag_limit(self) -> int | None:
        """See `RolloutSource`: an engine answers by the very policy that is trained."""
        return 0

    def check_inputs(self, stage: Any, model: Any) -> None:
        """Raise InputError where what the engine needs is not here, or cannot serve a `ModelConfig` in the layout of a
        `StageRecipe`. Called before any process group is up, on the first rank alone."""


class MegatronRollouts(EngineOptions):
    engine: str = "megatron"
    """The trainer's own ranks answer, with its own weights."""
    engine_class = "megatron_davinci.rl.engines.megatron:MegatronEngine"
    cache_tokens: Positive = 65536
    """Rows whose keys and values each replica holds at once; what exceeds them waits."""


class VllmRollouts(EngineOptions):
    engine: str = "vllm"
    """vllm: a vLLM server answers, to which the weights are sent after every step, and proven to have arrived."""
    engine_class = "megatron_davinci.rl.engines.vllm:VllmEngine"
    rounds_otherwise = True
    environment: InputPath = DEFAULT_DIRECTORY
    """Directory of vLLM's own environment, as `davinci rollout setup DIR` makes it. The run starts a server there,
    beside its first rank, which ends with it."""
    servers: PathText | None = None
    """Servers that are there already, in place of one that the run starts: a directory into which each
    `davinci rollout serve` writes its address and token. The run waits for `num_servers` of them."""
    num_servers: Positive = 1
    """How many servers answer, each with a share of the prompts; more than one wants `servers`."""
    devices: str | None = None
    """GPUs of the server that the run starts, as in CUDA_VISIBLE_DEVICES, which no rank has. On a GPU needed, unless
    `arguments` say by gpu-memory-utilization how much of one is left for it."""
    arguments: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Further arguments of that server, by vLLM's names: {max-num-seqs: 512, tensor-parallel-size: 2}."""
    max_lag: Literal[0, 1] = 0
    """0: each step's responses come from the very policy that it trains. 1: they may be one step older, and the next
    step's are written while this one trains; policy.kind must then take ratios (grpo, dapo)."""
    max_log_prob_diff: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The run stops where rollout_log_prob_diff exceeds this, in nats; where absent 0.001 in fp32, 0.1 in bf16, and 1
    with max_lag 1, where the policy itself has moved on."""
    timeout: Positive = 600
    """Seconds after which a server that does not start, or does not answer, is taken for dead and started again."""
    top_p: Annotated[float, Field(ge=1, le=1)] = 1.0
    """Nothing else: vLLM's log-probabilities are those after top_p cuts."""

    @field_validator("arguments")
    @classmethod
    def _refuse_ours(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(given):
            if is_among(name, OURS):
                raise ValueError(f"{name} is set by this project: leave it out")
            if is_among(name, UNPROVEN):
                raise ValueError(f"{name} would let weights differ where nobody looks: leave it out")
        return given

    @field_validator("num_servers")
    @classmethod
    def _check_servers(cls, count: int, info: Any) -> int:
        if count > 1 and info.data.get("servers") is None:
            raise ValueError("a run starts one server: name a directory of more under servers")
        return count

    def check_inputs(self, stage: Any, model: Any) -> None:
        """See `EngineOptions`."""
        if self.servers is not None:
            return
        environment = find_environment(self.environment)
        check_servable(model, environment)
        if not environment.on_cpu and self.devices is None and "gpu-memory-utilization" not in self.arguments:
            raise InputError(
                "objective.rollouts.engine is vllm, on GPUs that the ranks of this machine fill: set "
                "objective.rollouts.devices to GPUs that no rank has, or arguments: {gpu-memory-utilization: 0.3} for "
                "a part of one, or servers"
            )

    def lag_limit(self) -> int | None:
        """See `RolloutSource`."""
        return self.max_lag

    def log_prob_limit(self, bf16: bool) -> float | None:
        """See `RolloutSource`."""
        if self.max_log_prob_diff is not None:
            return self.max_log_prob_diff
        if self.max_lag:
            return 1.0
        return 0.1 if bf16 else 1e-3


def _read_rollouts(value: Any) -> Any:
    if isinstance(value, str):
        return RolloutDirectory(directory=value)
    if not isinstance(value, dict):
        return value
    if "directory" in value:
        return parse_section(RolloutDirectory, value)
    return options_of(ENGINES, "engine", EngineOptions, {"engine": "megatron", **value})


RolloutsSection = Annotated[SerializeAsAny[RolloutSource], BeforeValidator(_read_rollouts)]
