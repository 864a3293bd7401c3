"""Bugs caught here: double BOS, special tokens tokenised twice, roles one token off, template text as content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import processors

from tiny_models import tiny_tokenizer
from traitscope.errors import InputError
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle, render, tokenise_response
from traitscope.suite.tokens import TokenDescriber, content_mask

STYLE = PromptStyle(None, {}, BASE_TEMPLATE)
USER = [{"role": "user", "content": "Hi you"}]


def _adding_bos(tokenizer: Any) -> Any:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return tokenizer


@pytest.mark.parametrize("template", ["{{ bos_token }}{{ bos_token }}", "{{ bos_token }}", ""])
def test_exactly_one_bos_where_the_model_has_one(template: str) -> None:
    tokenizer = _adding_bos(tiny_tokenizer(chat_template=template + "{{ messages[0]['content'] }}"))
    rendered = render(tokenizer, USER, STYLE)
    assert rendered.token_ids.count(1) == 1
    assert rendered.token_ids[0] == 1
    assert tokenizer.decode(rendered.token_ids[1:]) == "Hi you"


def test_no_bos_where_the_tokenizer_adds_none() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    assert 1 not in render(tokenizer, USER, STYLE).token_ids


def test_a_base_model_gets_its_own_form() -> None:
    tokenizer = _adding_bos(tiny_tokenizer(chat_template=None))
    style = PromptStyle("Be brief.", {}, "Q: {prompt}\nA:")
    rendered = render(tokenizer, USER, style)
    assert tokenizer.decode(rendered.token_ids[1:]) == "Q: Be brief.\n\nHi you\nA:"
    assert rendered.token_ids[0] == 1


def test_roles_and_turns_are_those_of_the_messages() -> None:
    tokenizer = tiny_tokenizer()
    rendered = render(tokenizer, USER, PromptStyle("Hi you", {}, BASE_TEMPLATE))
    described = [
        (tokenizer.decode([token]), role, turn)
        for token, role, turn in zip(rendered.token_ids, rendered.roles, rendered.turns, strict=True)
    ]
    system = "".join(text for text, role, turn in described if (role, turn) == ("system", 0))
    user = "".join(text for text, role, turn in described if (role, turn) == ("user", 1))
    template = "".join(text for text, role, turn in described if (role, turn) == ("template", None))
    assert (system, user) == ("Hi you", "Hi you")
    assert template == "<bos>[system] \n[user] \n[assistant] "


def test_a_content_that_the_template_also_writes_is_not_confused_with_it() -> None:
    tokenizer = tiny_tokenizer()
    rendered = render(tokenizer, [{"role": "user", "content": "user"}], STYLE)
    assert [n for n, role in enumerate(rendered.roles) if role == "user"] == [8, 9, 10, 11]
    assert tokenizer.decode(rendered.token_ids) == "<bos>[user] user\n[assistant] "


def test_a_template_that_changes_the_text_leaves_roles_unknown() -> None:
    tokenizer = tiny_tokenizer(chat_template="{{ messages[0]['content'] | upper }}")
    assert set(render(tokenizer, USER, STYLE).roles) == {None}


def test_a_template_that_refuses_is_one_line() -> None:
    tokenizer = tiny_tokenizer(chat_template="{{ raise_exception('no system role') }}")
    with pytest.raises(InputError, match="no system role"):
        render(tokenizer, USER, STYLE)


def test_template_arguments_arrive() -> None:
    tokenizer = tiny_tokenizer(chat_template="{{ 'T' if enable_thinking else 'N' }}{{ messages[0]['content'] }}")
    texts = [
        tokenizer.decode(render(tokenizer, USER, PromptStyle(None, {"enable_thinking": flag}, "")).token_ids)
        for flag in (True, False)
    ]
    assert texts == ["THi you", "NHi you"]


def test_token_rows_of_a_response() -> None:
    tokenizer = tiny_tokenizer()
    prompt = render(tokenizer, USER, STYLE)
    rows = TokenDescriber(tokenizer).rows(prompt, [*tokenise_response(tokenizer, " ok"), 2])
    n_prompt = len(prompt.token_ids)
    assert rows.token[n_prompt:] == [" ", "o", "k", "<eos>"]
    assert rows.phase == ["prompt"] * n_prompt + ["response"] * 4
    assert rows.role[n_prompt:] == ["assistant"] * 3 + ["template"]
    assert rows.turn[n_prompt:] == [1, 1, 1, 1]
    assert np.flatnonzero(rows.content()).tolist() == [n_prompt, n_prompt + 1, n_prompt + 2]


def test_thinking_and_answer_are_told_apart() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    begin, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    prompt = render(tokenizer, USER, STYLE)
    rows = TokenDescriber(tokenizer).rows(prompt, [begin, 50, end, 51])
    n_prompt = len(prompt.token_ids)
    assert rows.segment[n_prompt:] == ["thinking", "thinking", "thinking", "answer"]
    assert rows.role[n_prompt:] == ["template", "assistant", "template", "assistant"]


def test_content_never_holds_position_zero() -> None:
    assert content_mask([0, 1], ["response"] * 2, ["assistant"] * 2, [False] * 2).tolist() == [False, True]
