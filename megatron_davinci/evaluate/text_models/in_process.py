"""A Hugging Face directory in this process, by transformers: many prompts at a time, padded on the left."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor, StoppingCriteria

from data_prep import InputError
from data_prep.io.errors import DAMAGE, describe
from megatron_davinci.evaluate.tasks.task import AnswerText
from megatron_davinci.evaluate.text_models.base import OnAnswer, TextRequest, cut_at_stop
from megatron_davinci.serve.turn_end import turn_end

_BATCH_CPU, _BATCH_GPU = 8, 32
_TAIL_TOKENS = 24  # in which a stop string that has just been written stands


class InProcessTexts:
    """Weights stay in the precision in which they are stored; the likeliest token is what transformers' greedy search
    gives. A sample depends on its request's seed alone, whatever else is in its batch."""

    def __init__(self, directory: Path) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left", trust_remote_code=False)
            model, told = AutoModelForCausalLM.from_pretrained(
                directory, dtype="auto", trust_remote_code=False, output_loading_info=True
            )
        except (OSError, RuntimeError, SafetensorError, *DAMAGE) as error:
            raise InputError(f"{directory} is no model that transformers reads: {describe(error)}") from None
        if lacking := sorted([*told["missing_keys"], *map(str, told["mismatched_keys"])]):
            raise InputError(
                f"{directory} lacks weights that its config.json names, such as {lacking[0]}: export it again"
            )
        self._model = model.to(self._device).eval()
        self._context = int(getattr(model.config, "max_position_embeddings", 0)) or None
        self._ends = _end_tokens(model, self._tokenizer)
        self._model.generation_config = GenerationConfig()  # whose penalties would change the likeliest token
        self._turn_end = turn_end(directory)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token_id = min(self._ends, default=0)

    def close(self) -> None:
        """See `AnswersTexts`."""
        del self._model
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def answer(self, requests: Sequence[TextRequest], on_answer: OnAnswer) -> None:
        """See `AnswersTexts`. Prompts of like length go together."""
        ids = [self._encode(request) for request in requests]
        fitting = list[int]()
        for number, request in enumerate(requests):
            if self._context and len(ids[number]) + request.max_tokens > self._context:
                on_answer(number, AnswerText("", "no_room", prompt_tokens=len(ids[number])))
            else:
                fitting.append(number)
        fitting.sort(key=lambda number: (requests[number].max_tokens, len(ids[number]), number))
        size = _BATCH_GPU if self._device.type == "cuda" else _BATCH_CPU
        for at in range(0, len(fitting), size):
            chunk = fitting[at : at + size]
            found = self._answers([requests[each] for each in chunk], [ids[each] for each in chunk])
            for number, answer in zip(chunk, found, strict=True):
                on_answer(number, answer)

    def _encode(self, request: TextRequest) -> list[int]:
        if not request.chat:
            return list(self._tokenizer(request.text)["input_ids"])
        if not self._tokenizer.chat_template:
            raise InputError("the model has no chat template: leave --chat out")
        messages = [{"role": "user", "content": request.text}]
        try:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except jinja2.TemplateError as error:
            raise InputError(f"the model's chat template refuses a message of a user: {describe(error)}") from None
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def _answers(self, requests: Sequence[TextRequest], ids: Sequence[list[int]]) -> list[AnswerText]:
        batch = self._tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt").to(self._device)
        width = batch["input_ids"].shape[1]
        most = max(request.max_tokens for request in requests)
        ends = {*self._ends, *([self._turn_end] if requests[0].chat and self._turn_end is not None else [])}
        processors = [_Sampler(requests)] if requests[0].temperature else []
        written = self._model.generate(
            **batch,
            generation_config=GenerationConfig(
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=sorted(ends) or None,
                pad_token_id=self._tokenizer.pad_token_id,
            ),
            logits_processor=processors,
            stopping_criteria=[_StopStrings(self._text, requests, width)],
        )
        rows = written[:, width:].tolist()
        return [self._read(*each, ends) for each in zip(rows, ids, requests, strict=True)]

    def _read(self, row: list[int], ids: list[int], request: TextRequest, ends: set[int]) -> AnswerText:
        row = row[: request.max_tokens]
        end = next((place for place, token in enumerate(row) if token in ends), None)
        finish = "length" if end is None else "stop"
        row = row if end is None else row[:end]
        while row and row[-1] == self._tokenizer.pad_token_id:  # others of the batch were longer
            row.pop()
        text, finish = cut_at_stop(self._text(row), finish, request.stop)
        return AnswerText(text, finish, prompt_tokens=len(ids), completion_tokens=len(row))

    def _text(self, ids: Any) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Those with which the model's own settings end a text."""
    named = model.generation_config.eos_token_id
    ends = {named} if isinstance(named, int) else set(named or ())
    return ends or ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())


class _StopStrings(StoppingCriteria):
    """Ends the rows whose last tokens hold a stop string."""

    def __init__(self, text: Callable[[Any], str], requests: Sequence[TextRequest], width: int) -> None:
        self._text, self._requests, self._width = text, requests, width

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        tails = input_ids[:, max(self._width, input_ids.shape[1] - _TAIL_TOKENS) :].tolist()
        done = [
            any(map(self._text(tail).__contains__, each.stop)) for tail, each in zip(tails, self._requests, strict=True)
        ]
        return torch.tensor(done, device=input_ids.device)


class _Sampler(LogitsProcessor):
    """Samples by the largest of logits/T + Gumbel noise, each row with a generator of its own seed."""

    def __init__(self, requests: Sequence[TextRequest]) -> None:
        self._temperature = requests[0].temperature
        self._generators = [torch.Generator().manual_seed(request.seed) for request in requests]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        uniforms = torch.stack(
            [torch.rand(scores.shape[1], generator=each, dtype=torch.float64) for each in self._generators]
        )
        noise = -torch.log(-torch.log(uniforms.clamp(1e-300, 1 - 1e-16)))
        return scores.double() / self._temperature + noise.to(scores.device)
