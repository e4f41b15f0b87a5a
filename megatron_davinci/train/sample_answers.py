"""The same prompts, answered by the model as it is at each checkpoint: for people to read side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.tokenizers import Tokenizer, load_tokenizer, tokenizer_file
from megatron_davinci.config.rollouts import MegatronRollouts
from megatron_davinci.core.groups import sync_errors
from megatron_davinci.core.step import Trainer
from megatron_davinci.data.objective import SamplePrompt
from megatron_davinci.rl.engines.base import EngineContext, GenerationRequest, RequestBranch, Sampling
from megatron_davinci.rl.engines.megatron import MegatronEngine
from megatron_davinci.rl.inputs import read_stop_token_ids
from megatron_davinci.train.prepare import RunState


@dataclass(frozen=True)
class _Asked:
    """The prompts of one stage, and who answers them."""

    stage: str
    prompts: Sequence[SamplePrompt]
    tokenizer: Tokenizer
    engine: MegatronEngine
    ends: Callable[[], Callable[[int], bool]] | None


class SampleAnswers:
    """Answers prompts of the stages in this layout. All ranks make it and call it together; each replica answers all.

    Everything is read when it is made. Raises InputError on every rank where a prompt or its tokenizer cannot be had.
    """

    def __init__(self, run: RunState, trainer: Trainer, stages: range) -> None:
        self._run, self._options = run, run.recipe.report
        with sync_errors():
            self._asked = {index: self._ask(index, trainer) for index in stages if self._options.prompts}

    def after(self, step: int) -> list[dict[str, Any]]:
        """Lines of answers.jsonl, by the model that has taken `step` steps, about the stage it is in."""
        asked = self._asked.get(self._run.batches.stage_of(max(0, step - 1)))
        if asked is None:
            return []
        draws = np.zeros((1, self._options.max_tokens))
        requests = [
            GenerationRequest(prompt.ids, [RequestBranch(len(prompt.ids), [], draws)]) for prompt in asked.prompts
        ]
        with sync_errors():
            answered = asked.engine.generate(requests, Sampling(temperature=0.0, ends=asked.ends))
        return [
            {
                "step": step,
                "stage": asked.stage,
                "prompt": number,
                "where": prompt.where,
                "before": prompt.before,
                "truth": prompt.truth,
                "text": _text(asked.tokenizer, response.tokens),
                "finished": response.finished,
            }
            for number, (prompt, [[response]]) in enumerate(zip(asked.prompts, answered, strict=True))
        ]

    def _ask(self, index: int, trainer: Trainer) -> _Asked:
        inputs = self._run.inputs[index]
        directory = inputs.find_tokenizer()
        stop_token_ids = read_stop_token_ids(directory, self._run.batches.tokenizer["eod"])
        engine = MegatronEngine.of(
            EngineContext(
                trainer.chunks,
                trainer.device,
                inputs.stage.recipe,
                self._run.model,
                MegatronRollouts(),
                stop_token_ids,
                Path(self._run.recipe.checkpoint.dir),
                trainer.timers.moved,
            )
        )
        tokenizer, _ = load_tokenizer(tokenizer_file(directory))
        prompts = inputs.sample_prompts(self._options.prompts)
        return _Asked(inputs.stage.name, prompts, tokenizer, engine, inputs.answer_end)


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Ids as text; a model may have more ids than its tokenizer, and an untrained one may say them."""
    return tokenizer.decode([id_ for id_ in ids if id_ < tokenizer.vocab_size])
