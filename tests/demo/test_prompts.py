"""A conversation grows at its end only, so that what was computed for it stays valid."""

from hypothesis import given
from hypothesis import strategies as st
from tests.demo.models import byte_tokenizer

from infercore.demo.scenes.prompts import next_turn, opening

TOKENIZER = byte_tokenizer()
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)


@given(answer=TEXT, question=TEXT)
def test_next_turn_is_the_template_of_the_longer_conversation(answer: str, question: str) -> None:
    said = [*opening(TOKENIZER, MESSAGES), *TOKENIZER(answer, add_special_tokens=False).input_ids]
    longer = [*MESSAGES, {"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    grown = next_turn(TOKENIZER, said, question)
    assert grown[: len(said)] == said
    assert TOKENIZER.decode(grown) == TOKENIZER.decode(opening(TOKENIZER, longer))


def test_an_answer_that_ended_itself_is_not_ended_twice() -> None:
    said = [*opening(TOKENIZER, MESSAGES), *TOKENIZER("Hi.").input_ids]
    assert next_turn(TOKENIZER, [*said, TOKENIZER.eos_token_id], "More?") == next_turn(TOKENIZER, said, "More?")
