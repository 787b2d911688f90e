"""(a) A chat of six turns below a long system prompt: what was computed once is not computed again."""

from collections.abc import Callable
from typing import Any

from transformers import DynamicCache

from infercore.demo import peers
from infercore.demo.scenes.prompts import TokenIds, next_turn, opening
from infercore.demo.stage import Counts, Outputs, Scene, Stage
from infercore.speculative import SuffixDrafter

MAX_NEW_TOKENS = 48
SYSTEM = """\
You are the assistant of the Greenfield public library. Answer with one short sentence.

Facts about the library:
- The library is open from 9 to 19 on Monday to Friday, and from 10 to 16 on Saturday. On Sunday it is closed.
- A membership card costs 12 dollars a year. It is free for children, students and people over 65.
- To get a card, bring a photo identity card and a letter with your address to the front desk.
- A lost card is replaced for 3 dollars.
- Members can borrow up to ten items at a time.
- Books can be kept for four weeks. Films and games can be kept for one week.
- A late book costs 20 cents a day.
- Dictionaries, maps and newspapers cannot be borrowed.
- The front desk, the children's library and the cafe are on the first floor.
- The novels, the films and twelve computers are on the second floor. Members can use a computer for two hours a day.
- The reading room and four study rooms are on the third floor. A study room can be reserved for three hours.
- The story hour for children is every Wednesday at 3 in the afternoon.
- The book club meets on the first Thursday of the month at 6 in the evening."""
EXAMPLES = [
    ("Can I borrow a newspaper?", "No, newspapers cannot be borrowed."),
    ("Where is the cafe?", "The cafe is on the first floor."),
]
QUESTIONS = [
    "What does a membership card cost?",
    "How long can I keep a book?",
    "And a film?",
    "When is the book club?",
    "Can I reserve a study room?",
    "Can I borrow a map?",
]
MAX_DRAFT_NODES = 7


def play(stage: Stage) -> Scene:
    """Six turns, each a prompt that begins with all that was said before."""
    expected = MAX_NEW_TOKENS * len(QUESTIONS)

    def by_generate(cache: Any) -> Outputs:
        def answer(prompt: TokenIds) -> tuple[TokenIds, Counts]:
            num_reused = cache.get_seq_length()
            output = peers.generate(stage.model, prompt, MAX_NEW_TOKENS, cache=cache)
            return output, Counts(num_reused=num_reused)

        return _talk(stage, answer)

    def by_engine() -> Outputs:
        drafter = stage.drafter(SuffixDrafter())

        def answer(prompt: TokenIds) -> tuple[TokenIds, Counts]:
            (done,) = stage.engine.generate(
                [prompt], max_new_tokens=MAX_NEW_TOKENS, drafter=drafter, max_draft_nodes=MAX_DRAFT_NODES
            )
            return done.token_ids, Counts.of([done])

        return _talk(stage, answer)

    cache = DynamicCache(config=stage.model.config)
    # Prompt lookup is no option for the other side here: with a cache that holds a prefix, transformers 5.23 computes
    # the whole prompt again, appends it, and answers differently.
    theirs = stage.peer("generate, cache reused", lambda: by_generate(cache), what="chat", num_expected=expected)
    ours = stage.ours(by_engine, what="chat", num_expected=expected)
    stage.kept["chat"] = peers.Kept(_transcript(stage, theirs.outputs)[:-1], cache)
    stage.kept["chat transcript"] = _transcript(stage, ours.outputs)
    texts = [stage.tokenizer.decode(output, skip_special_tokens=True) for output in ours.outputs]
    title = f"a chat of six turns below a system prompt of {len(first_prompt(stage.tokenizer, QUESTIONS[0]))} tokens"
    return Scene("chat", title, QUESTIONS, texts, ours, [theirs])


def _talk(stage: Stage, answer: Callable[[TokenIds], tuple[TokenIds, Counts]]) -> Outputs:
    """Ask every question in turn; the answers, and what they took together."""
    outputs: list[TokenIds] = []
    counts = Counts()
    for i in range(len(QUESTIONS)):
        said = _transcript(stage, outputs)
        output, more = answer(next_turn(stage.tokenizer, said, QUESTIONS[i]) if i else said)
        outputs.append(output)
        counts += more
    return outputs, counts


def first_prompt(tokenizer: Any, question: str) -> TokenIds:
    """The system prompt, two worked examples that keep a small model to short answers, and `question`."""
    messages = [{"role": "system", "content": SYSTEM}]
    for asked, answered in EXAMPLES:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return opening(tokenizer, [*messages, {"role": "user", "content": question}])


def _transcript(stage: Stage, outputs: list[TokenIds]) -> TokenIds:
    """All that was said: the first prompt, and the answers so far with the questions between them."""
    said = first_prompt(stage.tokenizer, QUESTIONS[0])
    for i, output in enumerate(outputs):
        said = [*(next_turn(stage.tokenizer, said, QUESTIONS[i]) if i else said), *output]
    return said
