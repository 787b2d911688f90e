"""The model card of a trained head."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infercore.hf.heads.config import HeadConfig
from infercore.hf.heads.train.corpus import Document

if TYPE_CHECKING:
    from infercore.hf.heads.train.run import Checked, Plan


def model_card(
    name: str,
    plan: "Plan",
    config: HeadConfig,
    checked: "Checked",
    documents: Sequence[Document],
    log: Sequence[dict[str, Any]],
    *,
    avoided: bool,
) -> str:
    """Markdown: what it is, how to use it, how it was trained, how good it is and where that was measured."""
    steps = " | ".join(f"step {i + 1}" for i in range(len(checked.accuracy)))
    rows = [
        f"| {line['minutes']:.1f} | {line['step']} | {line['accept_length']:.2f} | "
        + " | ".join(f"{share:.3f}" for share in line["accuracy"])
        + " |"
        for line in log
    ]
    tokens = sum(len(d.token_ids) for d in documents)
    kept_apart = (
        "Documents that share eight words in a row with the texts named as tests were left out."
        if avoided
        else "Nothing was filtered out."
    )
    return "\n".join(
        [
            "---",
            "tags: [eagle3, speculative-decoding, infercore]",
            "---",
            f"# EAGLE-3 head for {name}",
            "",
            f"One decoder layer of width {config.hidden_size} and a draft vocabulary of {config.draft_vocab_size} of "
            f"{config.vocab_size} tokens. It proposes tokens; the target verifies them, so outputs stay the target's.",
            "",
            "```python",
            "from infercore.hf import EagleDrafter, Engine",
            "",
            "engine = Engine(model, tokenizer)",
            'engine.generate(prompts, drafter=EagleDrafter.from_pretrained("this/folder", model))',
            "```",
            "",
            "`model.safetensors` has the names of the EAGLE-3 authors, in bfloat16. `int8/` holds the same in 8 bits",
            "with a scale a row, which infercore reads.",
            "",
            "## Training",
            "",
            f"{tokens} tokens in {len(documents)} documents, written by the target itself (it was given what stands "
            f"before a user's message and wrote message and answer) or taken from text files. {kept_apart}",
            f"Features of layers {config.feature_layers}; training-time test of {plan.ttt_steps} steps, weighted "
            f"0.8 ** i; cross entropy with the target's distribution; {plan.optimizer}, learning rate "
            f"{plan.learning_rate:g}, {plan.batch_tokens} tokens a step.",
            "",
            "On documents held out of the training, counted on answers (messages a quarter): share of places where",
            "the head's likeliest token is the target's, by step, and the tokens a forward that a chain of them",
            "would gain.",
            "",
            f"| minutes | steps | chain accept length | {steps} |",
            "| --- " * (3 + len(checked.accuracy)) + "|",
            *rows,
            "",
        ]
    )
