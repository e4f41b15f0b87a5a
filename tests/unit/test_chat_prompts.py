"""Tests of prompts inside chat templates: they read as transformers renders them, around ids that stay as they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from data_prep import InputError
from megatron_davinci.config.objectives import Grpo, Rmt
from megatron_davinci.rl.chat_prompt import template_of
from megatron_davinci.rl.templates import OPENING, load_template
from megatron_davinci.rl.token_bytes import TokenBytes

# DeepSeek-R1-Distill-Qwen's begins with BOS, names roles by tokens, and opens the thought itself.
R1 = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_end|><think>\\n{% endif %}"
)
TEXT = "The probability p\u00e9 is the"


def tokenizer_with(qwen_json: Path, folder: Path, template: str) -> Path:
    folder.mkdir()
    shutil.copy(qwen_json, folder / "tokenizer.json")
    named = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def template(shared_data: Path, name: str) -> str:
    return R1 if name == "r1" else (shared_data / "prompts/chat_templates" / f"{name}.jinja").read_text()


OPTIONS = [
    Rmt(template="wrap_1", chat_template=True),
    Rmt(chat_template=True),
    Rmt(template="suffix_exact_1", chat_template=True),
    Grpo(chat_template=True),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.template)
@pytest.mark.parametrize("name", ["r1", "Qwen-Qwen3-0.6B", "Qwen-QwQ-32B", "Qwen-Qwen2.5-7B-Instruct"])
def test_a_prompt_is_what_transformers_renders(
    shared_data: Path, qwen_json: Path, tmp_path: Path, name: str, options: Any
) -> None:
    source = template(shared_data, name)
    texts = TokenBytes(tokenizer_with(qwen_json, tmp_path / "model", source))
    prompt = template_of(options, texts)
    document = texts.encode(TEXT)
    ids = [*prompt.preamble_ids(), *document, *prompt.instruction_ids(32)]
    plain = load_template(options.template, texts.encode)
    content = f"{plain.preamble}{TEXT}{plain.instruction.format(budget=32)}".removesuffix(OPENING)
    conversation = [{"role": "user", "content": content}]
    rendered, _ = render_jinja_template(
        [conversation], chat_template=source, add_generation_prompt=True, bos_token="<|endoftext|>"
    )
    [expected] = rendered
    expected = expected if expected.endswith(OPENING) else expected + OPENING
    named = {id_: token.encode() for token, id_ in texts.named.items()}
    assert b"".join(named.get(id_) or texts.texts[id_] for id_ in ids).decode() == expected
    assert expected.endswith(OPENING) and ids[len(prompt.preamble_ids()) :][: len(document)] == document
    assert ids[0] in texts.named.values()  # a control token is one, not its letters


@pytest.mark.parametrize("end", ["<think>", "<think>\\n\\n", "<think>\\n", ""])
@pytest.mark.parametrize("as_token", [False, True])
def test_a_thought_is_opened_once(qwen_json: Path, tmp_path: Path, end: str, as_token: bool) -> None:
    source = f"{{% for m in messages %}}<|im_start|>{{{{ m.content }}}}{{% endfor %}}{{{{ '<|im_end|>\\n{end}' }}}}"
    folder = tokenizer_with(qwen_json, tmp_path / "model", source)
    if as_token:
        described = json.loads((folder / "tokenizer.json").read_text())
        last = described["added_tokens"][-1]
        described["added_tokens"].append({**last, "id": last["id"] + 1, "content": "<think>", "special": False})
        (folder / "tokenizer.json").write_text(json.dumps(described))
    texts = TokenBytes(folder)
    assert ("<think>" in texts.named) == as_token
    ids = template_of(Rmt(chat_template=True), texts).instruction_ids(32)
    named = {id_: token.encode() for token, id_ in texts.named.items()}
    text = b"".join(named.get(id_) or texts.texts[id_] for id_ in ids).decode()
    assert text.endswith("<|im_end|>\n<think>\n") and text.count("<think>") == 1


def test_a_template_that_does_not_show_the_message_is_refused(qwen_json: Path, tmp_path: Path) -> None:
    texts = TokenBytes(tokenizer_with(qwen_json, tmp_path / "model", "<|im_start|>hello"))
    with pytest.raises(InputError, match="the chat template shows a message 0 times: take another template"):
        template_of(Rmt(chat_template=True), texts).preamble_ids()
    (tmp_path / "model/tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"is true, and .* has no chat template: put chat_template.jinja there"):
        template_of(Rmt(chat_template=True), TokenBytes(tmp_path / "model"))
