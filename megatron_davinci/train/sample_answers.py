"""The same prompts, answered by the model as it is at each checkpoint: for people to read side by side."""

from typing import Any

import numpy as np

from data_prep.tokenizers import load_tokenizer, tokenizer_file
from megatron_davinci.config.objectives import MegatronRollouts
from megatron_davinci.core.step import Trainer
from megatron_davinci.data.objective import SamplePrompt
from megatron_davinci.rl.engines.base import GenerationRequest, RequestBranch, Sampling
from megatron_davinci.rl.engines.megatron import MegatronEngine
from megatron_davinci.rl.inputs import read_stop_token_ids
from megatron_davinci.train.prepare import RunState


class SampleAnswers:
    """Lines of answers.jsonl, made by all ranks together: each replica answers every prompt."""

    def __init__(self, run: RunState, trainer: Trainer) -> None:
        self._run, self._trainer, self._options = run, trainer, run.recipe.report
        self._prompts: dict[int, list[SamplePrompt]] = {}

    def after(self, step: int) -> list[dict[str, Any]]:
        """The answers of the model that has taken `step` steps, to the prompts of the stage it is in."""
        if not self._options.prompts:
            return []
        index = self._run.batches.stage_of(max(0, step - 1))
        inputs = self._run.inputs[index]
        prompts = self._prompts.setdefault(index, inputs.sample_prompts(self._options.prompts))
        tokenizer = inputs.find_tokenizer()
        engine = MegatronEngine.of(
            self._trainer.chunks,
            self._trainer.device,
            inputs.stage.recipe,
            MegatronRollouts(),
            read_stop_token_ids(tokenizer, self._run.batches.tokenizer["eod"]),
            self._trainer.timers.moved,
        )
        draws = np.zeros((1, self._options.max_tokens))
        requests = [GenerationRequest(prompt.ids, [RequestBranch(len(prompt.ids), [], draws)]) for prompt in prompts]
        answered = engine.generate(requests, Sampling(temperature=0.0))
        decode = load_tokenizer(tokenizer_file(tokenizer))[0].decode
        return [
            {
                "step": step,
                "prompt": number,
                "where": prompt.where,
                "before": prompt.before,
                "truth": prompt.truth,
                "text": decode(list(response.tokens)),
                "finished": response.finished,
            }
            for number, (prompt, [[response]]) in enumerate(zip(prompts, answered, strict=True))
        ]
