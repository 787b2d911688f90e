"""(c) Correcting a text that is mostly right: the answer repeats the prompt, so long drafts are accepted."""

from typing import Any

from infercore.demo import peers
from infercore.demo.recorder import Recorder
from infercore.demo.scenes.prompts import TokenIds, opening
from infercore.demo.stage import Counts, Outputs, Scene, Stage
from infercore.speculative import NGramDrafter

MAX_NEW_TOKENS = 256
MAX_DRAFT_NODES = 16
PROMPT_LOOKUP_TOKENS = 10  # what the transformers documentation uses
SYSTEM = "You are a careful copy editor. You return the corrected text and nothing else."
TEXT = """\
The library opens at nine in the morning. It have two floors and a garden. On the first floor there is books for \
children and a small cafe. On the second floor there are rooms for quiet study and a colection of old maps. Members \
can borrow up to five books at a time for three weeks. New members pays nothing for the first year. Every Wednesday a \
member of the staff read stories for children in the garden. In winter the stories is read on the second floor. \
Visitors can use the computers on the first floor for two hours a day."""
LATER_TEXT = """\
The museum opens at ten in the morning. On the first floor there is paintings of the old harbor. On the second floor \
there are tools and clothes from the last two hundred years. Visitors can rest in a small garden."""


def play(stage: Stage) -> Scene:
    """One long text; the other side decodes plainly and with prompt lookup, and the faster of these counts."""
    text_prompt = prompt(stage.tokenizer, TEXT)
    recorder = Recorder(stage.drafter(NGramDrafter()))

    def by_generate() -> Outputs:
        return [peers.generate(stage.model, text_prompt, MAX_NEW_TOKENS)], Counts()

    def by_prompt_lookup() -> Outputs:
        output = peers.generate(stage.model, text_prompt, MAX_NEW_TOKENS, prompt_lookup=PROMPT_LOOKUP_TOKENS)
        return [output], Counts()

    def by_engine() -> Outputs:
        done = stage.engine.generate(
            [text_prompt], max_new_tokens=MAX_NEW_TOKENS, drafter=recorder, max_draft_nodes=MAX_DRAFT_NODES
        )
        return [completion.token_ids for completion in done], Counts.of(done)

    theirs = [
        stage.peer("generate", by_generate, what="editing", num_expected=MAX_NEW_TOKENS),
        stage.peer("generate, prompt lookup", by_prompt_lookup, what="editing", num_expected=MAX_NEW_TOKENS),
    ]
    ours = stage.ours(by_engine, what="editing", num_expected=MAX_NEW_TOKENS)
    stage.kept["draft"] = recorder.most_telling()
    texts = [stage.tokenizer.decode(output, skip_special_tokens=True) for output in ours.outputs]
    return Scene("editing", "a text with mistakes, corrected with speculation", [TEXT], texts, ours, theirs)


def prompt(tokenizer: Any, text: str) -> TokenIds:
    """The request to correct `text`."""
    question = f"Correct the spelling and grammar of this text:\n\n{text}"
    return opening(tokenizer, [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}])
