"""Conversations as token ids: the template is applied piece by piece, so that each turn begins with the last one."""

from typing import Any

TokenIds = list[int]


def opening(tokenizer: Any, messages: list[dict[str, str]]) -> TokenIds:
    """Token ids of `messages` with the header of the answer to come."""
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return [int(token_id) for token_id in ids]


def next_turn(tokenizer: Any, said: TokenIds, question: str) -> TokenIds:
    """`said` (a prompt and its answer) continued by the user's `question` and the header of the next answer.

    What the template puts between two turns is found by applying it to a conversation with a marker for the answer;
    nothing that was said is encoded a second time, which need not give the same tokens.
    """
    marker = "\x00answer\x00"
    text = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": ""},
            {"role": "assistant", "content": marker},
            {"role": "user", "content": question},
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    between = text.split(marker, 1)[1]
    tail = tokenizer(between, add_special_tokens=False).input_ids
    already_ended = bool(said) and bool(tail) and said[-1] == tail[0]
    return [*said, *(tail[1:] if already_ended else tail)]
