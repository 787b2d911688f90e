"""Do drafts leave SmolLM2's greedy output alone, on all of Spec-Bench?

    python bench/speculative_check.py --batch 8 [--save]                        the controller, all questions
    python bench/speculative_check.py --drafter all --fixed 16 --questions 24   each drafter, every step with a tree
    python bench/speculative_check.py --drafter model --fixed 16 --questions 8  SmolLM2 drafts for itself

Traces are those of `python bench/speculative.py record`. Two tokens count as a tie where their float64 logits are less
than 2e-4 apart.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch

from infercore.hf import Engine, ModelForward
from infercore.speculative import Drafter, DraftModelDrafter, FixedBudget, SpeedController
from speculative import DRAFTERS, add_common_arguments, commit, load_model, traces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=240, help="how many, spread over all categories")
    parser.add_argument("--first", type=int, default=0, help="leave out so many, for runs in parts")
    parser.add_argument("--batch", type=int, default=8, help="prompts in one call")
    parser.add_argument("--drafter", choices=[*DRAFTERS, "model", "all"], default="suffix + recycling")
    parser.add_argument("--fixed", type=int, default=0, help="trees of this many nodes instead of the controller")
    add_common_arguments(parser)
    check(parser.parse_args())


def check(arguments: argparse.Namespace) -> None:
    """Outputs with drafts against recorded HF greedy ones; where they part, the float64 gap of the two tokens there."""
    model, tokenizer = load_model(arguments.model)
    recorded = traces(arguments.traces)[arguments.first :][: arguments.questions]
    lines = []
    for name in DRAFTERS if arguments.drafter == "all" else [arguments.drafter]:
        controller = FixedBudget(arguments.fixed) if arguments.fixed else SpeedController()
        engine = Engine(model, tokenizer, controller=controller)
        drafter = itself(arguments.model) if name == "model" else DRAFTERS[name]()
        differing = []
        for start in range(0, len(recorded), arguments.batch):
            some = recorded[start : start + arguments.batch]
            completions = engine.generate(
                [trace["prompt_ids"] for trace in some],
                max_new_tokens=arguments.new_tokens,
                drafter=drafter,
                max_draft_nodes=max(32, arguments.fixed),
            )
            for trace, completion in zip(some, completions, strict=True):
                expected, found = trace["output_ids"][: arguments.new_tokens], list(completion.token_ids)
                if found != expected:
                    differing.append(f"question {trace['question_id']} {first_difference(model, trace, found)}")
            print(f"{name}: {start + len(some)} questions, differing: {differing}", flush=True)
        which = f"{len(recorded)}, from {arguments.first + 1} on" if arguments.first else str(len(recorded))
        how = f"fixed {arguments.fixed}" if arguments.fixed else "controller"
        lines.append(
            f"| {name} | {how} | {arguments.batch} | {which} | {len(differing)} | {'; '.join(differing)} | "
            f"{engine.stats.accept_length:.2f} | {commit()} |"
        )
        if isinstance(controller, SpeedController):
            print(controller.report())
    path = Path(__file__).parent / "results" / "speculative_check.md"
    if arguments.save:  # runs add up
        path.touch()
        before = path.read_text().splitlines() or [
            f"SmolLM2 fp32, {arguments.new_tokens} new tokens, against greedy `generate` of Hugging Face",
            "",
            "| drafter | nodes | batch | questions | outputs differ | where, float64 gap | accept length | commit |",
            "| --- " * 8 + "|",
        ]
        path.write_text("\n".join([*before, *lines]) + "\n")
    print("\n".join(lines))


def itself(path: Path | None) -> Drafter:
    """The target as its own draft model: four tokens ahead, nearly all of which are accepted."""
    return DraftModelDrafter(ModelForward(load_model(path)[0]), max_depth=4, branching=1)


def first_difference(model: Any, trace: dict[str, Any], found: list[int]) -> str:
    """Where an output leaves the recorded one, and how far apart the two tokens' logits are in float64."""
    expected = trace["output_ids"]
    first = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), None)
    if first is None:
        return f"ends after {len(found)} instead of {len(expected)} tokens"
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("sdpa")
    with torch.inference_mode():
        logits = exact(torch.tensor([trace["prompt_ids"] + expected[:first]]), logits_to_keep=1).logits[0, -1]
    return f"token {first}, gap {float(logits[expected[first]] - logits[found[first]]):.1e}"


if __name__ == "__main__":
    main()
