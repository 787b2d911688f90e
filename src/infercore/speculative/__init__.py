"""Propose several tokens, verify them in one forward of the target, keep exactly what it would have said itself.

Use it when one forward over a few tokens costs little more than over one (a GPU at small batch, a CPU at a few
rows) and the text can be foreseen: it repeats itself, quotes its prompt, or a small model speaks alike. The parts know
no model; a decoding loop of your own needs the target's choice after the pending token and after each node:

    drafter = NGramDrafter()
    (tree,) = drafter.propose([DraftRequest(0, token_ids, max_nodes=32)])     # token_ids: int32 array, all text so far
    choices = my_forward(tree.token_ids, tree.position_ids(len(token_ids) - 1), tree.ancestor_bits())   # [1 + nodes]
    (verdict,) = verify_greedy([tree], [choices])                             # or verify(...) to sample
    token_ids = np.concatenate([token_ids, verdict.token_ids(tree)])
    drafter.commit(0, verdict.token_ids(tree))

Reading order: `tree.py` (what a draft is), `types.py` (the protocols), `verify.py` (what is kept, and why it is
exact), `verify_rows.py` (the same on a device). Drafters: `ngram.py` (the simplest), `suffix/` (what followed this
context before), `recycling.py` and `top_tokens.py` (what the target thought before), `draft_model.py` (a smaller
model), `forced.py` (what the grammar leaves), `union.py` (several as one tree), `lazy_union.py` (the same, a costly
one only where it pays). How much to draft: `control/` (by measured speed), `fixed_budget.py` (always the same). The
loops are in `_compiled.py` files.
"""

from infercore.speculative.control import Acceptance, CostCurve, SpeedController, Survival
from infercore.speculative.draft_model import DraftModelDrafter
from infercore.speculative.fixed_budget import FixedBudget
from infercore.speculative.forced import ForcedTokenDrafter
from infercore.speculative.lazy_union import LazyUnion, StartsAhead
from infercore.speculative.ngram import NGramDrafter
from infercore.speculative.recycling import RecyclingDrafter
from infercore.speculative.suffix import SuffixDrafter
from infercore.speculative.top_tokens import top_tokens
from infercore.speculative.tree import TokenTree
from infercore.speculative.types import (
    Controller,
    Drafter,
    DraftGrammar,
    DraftRequest,
    FeatureObserver,
    ForwardFn,
    TopTokenObserver,
    TreeGrower,
    Verdict,
)
from infercore.speculative.union import Union
from infercore.speculative.verify import verify, verify_greedy

__all__ = [
    "Acceptance",
    "Controller",
    "CostCurve",
    "DraftGrammar",
    "DraftModelDrafter",
    "DraftRequest",
    "Drafter",
    "FeatureObserver",
    "FixedBudget",
    "ForcedTokenDrafter",
    "ForwardFn",
    "LazyUnion",
    "NGramDrafter",
    "RecyclingDrafter",
    "SpeedController",
    "StartsAhead",
    "SuffixDrafter",
    "Survival",
    "TokenTree",
    "TopTokenObserver",
    "TreeGrower",
    "Union",
    "Verdict",
    "top_tokens",
    "verify",
    "verify_greedy",
]
