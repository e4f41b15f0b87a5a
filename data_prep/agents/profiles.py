"""Settings that papers name: how rollouts were sampled, and how models were evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass

from data_prep.io.errors import InputError


@dataclass(frozen=True)
class AgentProfile:
    """`rollouts` of each task, at most `steps` replies and `context_tokens` tokens each, at `temperature`."""

    rollouts: int
    steps: int
    context_tokens: int
    temperature: float

    def changed(
        self, rollouts: int | None, steps: int | None, context_tokens: int | None, temperature: float | None
    ) -> "AgentProfile":
        """With what a user gives in place of it."""
        return AgentProfile(
            self.rollouts if rollouts is None else rollouts,
            self.steps if steps is None else steps,
            self.context_tokens if context_tokens is None else context_tokens,
            self.temperature if temperature is None else temperature,
        )


# daVinci-Dev 3.2.3: up to 4 rollouts, 128k tokens; its temperature is not stated. OpenSWE (2603.13023): 300 steps.
SAMPLING_PROFILES: Mapping[str, AgentProfile] = {
    "davinci-dev": AgentProfile(4, 100, 131_072, 1.0),
    "openswe": AgentProfile(4, 300, 200_000, 1.0),
}
# daVinci-Dev 4.1: temperature 0, 128k, 100 steps, mean of 4 runs. OpenSWE: 300 steps, 0.7, mean of 2 runs; its context
# is not stated for evaluations.
EVALUATION_PROFILES: Mapping[str, AgentProfile] = {
    "davinci-dev": AgentProfile(4, 100, 131_072, 0.0),
    "openswe": AgentProfile(2, 300, 200_000, 0.7),
}


def find_profile(profiles: Mapping[str, AgentProfile], name: str) -> AgentProfile:
    """A profile by its name. Raises InputError."""
    if name not in profiles:
        raise InputError(f"--profile is {name!r}; it must be one of {', '.join(profiles)}")
    return profiles[name]
