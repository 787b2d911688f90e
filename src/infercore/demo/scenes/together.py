"""(d) All of it in one batch of four: the chat goes on, an order is extracted, a text corrected, a newcomer asks."""

from typing import Any

from infercore.demo import peers
from infercore.demo.scenes import chat, editing, extraction
from infercore.demo.scenes.prompts import next_turn
from infercore.demo.stage import Counts, Outputs, Scene, Stage
from infercore.hf import GrammarProcessor
from infercore.speculative import NGramDrafter

MAX_NEW_TOKENS = 120
NEXT_QUESTION = "When is the story hour?"
NEWCOMER = "What does a lost card cost?"


def play(stage: Stage) -> Scene:
    """Both sides keep the caches of the scenes before; on the other side one batch and one by one are both tried."""
    tokenizer, model = stage.tokenizer, stage.model
    prompts = [
        next_turn(tokenizer, stage.kept["chat transcript"], NEXT_QUESTION),
        extraction.prompt(tokenizer, extraction.LATER_EMAIL),
        editing.prompt(tokenizer, editing.LATER_TEXT),
        chat.first_prompt(tokenizer, NEWCOMER),
    ]
    constrained = 1  # the row of the extraction

    def by_batch() -> Outputs:
        processor = peers.OnRow(constrained, GrammarProcessor(extraction.grammar(stage)))
        return peers.generate_batch(model, prompts, MAX_NEW_TOKENS, logits_processor=processor), Counts()

    def one_by_one() -> Outputs:
        """Each in the way that suits it best: caches reused, the text corrected with prompt lookup."""
        num_reused = 0
        outputs = []
        for row, kept in enumerate([stage.kept["chat"], stage.kept["extraction"], None, stage.kept["chat"].copy()]):
            if kept is None:
                options: dict[str, Any] = {"prompt_lookup": editing.PROMPT_LOOKUP_TOKENS}
            else:
                num_reused += kept.cut_to_prefix_of(prompts[row])
                processor = GrammarProcessor(extraction.grammar(stage)) if row == constrained else None
                options = {"cache": kept.cache, "logits_processor": processor}
            outputs.append(peers.generate(model, prompts[row], MAX_NEW_TOKENS, **options))
        return outputs, Counts(num_reused=num_reused)

    def by_engine() -> Outputs:
        drafter = stage.drafter(NGramDrafter())
        requests = [
            stage.engine.request(
                prompt,
                max_new_tokens=MAX_NEW_TOKENS,
                grammar=extraction.grammar(stage) if row == constrained else None,
                drafter=drafter,
            )
            for row, prompt in enumerate(prompts)
        ]
        handles = [handle for request in requests for handle in stage.engine.submit(request)]
        while not all(handle.is_done for handle in handles):
            stage.engine.step()
        done = [handle.completion for handle in handles]
        return [completion.token_ids for completion in done], Counts.of(done)

    theirs = [
        stage.peer("generate, batch", by_batch, what="together", num_expected=MAX_NEW_TOKENS),
        stage.peer("generate, one by one", one_by_one, what="together", num_expected=4 * MAX_NEW_TOKENS),
    ]
    ours = stage.ours(by_engine, what="together", num_expected=MAX_NEW_TOKENS)
    texts = [tokenizer.decode(output, skip_special_tokens=True) for output in ours.outputs]
    remarks = [extraction.validated([texts[constrained]])]
    asked = [NEXT_QUESTION, extraction.LATER_EMAIL, editing.LATER_TEXT, NEWCOMER]
    return Scene("together", "all of it in one batch of four", asked, texts, ours, theirs, remarks)
