"""Is the packed forward right for this model? Asked once, when an engine is built.

A short plain forward is compared with a packed one that shares a prefix between sequences and carries draft trees.
Models whose layers bypass the attention hook, or pass something else than K/V from token to token, differ.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from infercore.errors import UnsupportedModel
from infercore.hf.attention import NAME
from infercore.hf.plan import Forward, Plan, Rows, build_plan
from infercore.radix import KVPool, PrefixCache
from infercore.speculative import TokenTree

_STILL_WORKS = (
    "What still works with it: infercore.hf.GrammarProcessor in plain model.generate (any batch size, beams too), and "
    "infercore.radix, infercore.constrained, infercore.speculative and infercore.kernels on their own."
)
_PAGE_SIZE = 4
_PROMPT = 9
_TREE_PARENTS = (-1, -1, 0, 0, 1, 2)
# relative to the largest logit; half precision rounds differently when a matrix product changes shape
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def refuse_by_config(model: nn.Module) -> None:
    """Refuse what the packed forward can never serve, before anything of the model is touched."""
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{type(model).__name__} is an encoder-decoder; the engine runs decoder-only causal models. {_STILL_WORKS}"
        )
    mixers = {
        t for t in getattr(_text_config(config), "layer_types", None) or () if "attention" not in t or "linear" in t
    }
    if mixers:
        raise UnsupportedModel(
            f"{type(model).__name__} has layers of type {', '.join(sorted(mixers))}, whose state is not a K/V per "
            f"token and cannot be paged. {_STILL_WORKS}"
        )


def use_packed_attention(model: Any) -> None:
    """Switch the model to the registered attention; UnsupportedModel if it does not let one choose."""
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModel(
            f"{type(model).__name__} does not use transformers' attention interface ({error}). {_STILL_WORKS}"
        ) from error
    if getattr(_text_config(model.config), "_attn_implementation", NAME) != NAME:
        raise UnsupportedModel(f"{type(model).__name__} kept its own attention implementation. {_STILL_WORKS}")


@torch.no_grad()
def self_check(model: Any, forward: Forward, *, vocab_size: int, device: torch.device) -> int:
    """Compare packed and plain forwards of `model` on a few tokens; UnsupportedModel, naming the layer, if they differ.

    Returns: bytes of K/V that one token takes over all layers.
    Cost: three short forwards.
    """
    token_ids = np.random.default_rng(0).integers(0, vocab_size, _PROMPT + 2 * len(_TREE_PARENTS)).astype(np.int32)
    prompt, drafts = token_ids[:_PROMPT], token_ids[_PROMPT:].reshape(2, -1)
    trees = [TokenTree.of(ids, _TREE_PARENTS) for ids in drafts]
    pool = KVPool(32, _PAGE_SIZE)
    cache = PrefixCache(32, _PAGE_SIZE, store=pool)
    was_training = model.training
    model.eval()
    try:
        plans: list[Plan] = []
        head = cache.open()
        split = _PROMPT // 2 + 1
        _run(forward, pool, device, [_rows(head, prompt[:split], TokenTree.empty())], plans)
        head.commit(prompt[:split])
        fork = head.fork()
        both = [_rows(head, prompt[split:], trees[0]), _rows(fork, prompt[split:], trees[1])]
        packed = _run(forward, pool, device, both, plans)
        _check_layers(model, plans[-1])
        num_chain = _PROMPT - split
        worst = 0.0
        scale = 1e-6
        for tree, rows in zip(trees, packed.reshape(2, num_chain + len(_TREE_PARENTS), -1), strict=True):
            for leaf in (4, 3, 5):
                path = _path(tree, leaf)
                ids = np.concatenate([prompt, tree.token_ids[path]]).astype(np.int64)
                plain = model(input_ids=torch.from_numpy(ids)[None].to(device), use_cache=False).logits[0].float()
                mine = rows[[*range(num_chain), *(num_chain + n for n in path)]].float()
                theirs = plain[split:]
                worst = max(worst, float((mine - theirs).abs().max()))
                scale = max(scale, float(theirs.abs().max()))
        allowed = _TOLERANCE.get(packed.dtype, 1e-1)
        if not worst <= allowed * scale:
            raise UnsupportedModel(
                f"{type(model).__name__}: logits of the packed forward differ from the plain one by {worst:.3g} "
                f"(largest logit {scale:.3g}, allowed {allowed:g} of it), so tokens reach each other in a way that "
                f"paged attention does not see. {_STILL_WORKS}"
            )
    finally:
        model.train(was_training)
    return pool.size_bytes // (pool.num_pages * _PAGE_SIZE)


def _rows(sequence: Any, token_ids: Any, tree: TokenTree) -> Rows:
    return Rows(sequence, token_ids, tree, sequence.append(len(token_ids) + tree.num_nodes), 0)


def _run(forward: Forward, pool: KVPool, device: torch.device, rows: list[Rows], plans: list[Plan]) -> torch.Tensor:
    plans.append(build_plan(rows, pool, device))
    try:
        return forward(plans[-1])
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{error}. {_STILL_WORKS}") from error


def _check_layers(model: Any, plan: Plan) -> None:
    """Every attention layer called the hook exactly once, and passed its window if its config has one."""
    config = _text_config(model.config)
    called = [layer for layer, _ in plan.observed]
    names = {m.layer_idx: n for n, m in model.named_modules() if isinstance(getattr(m, "layer_idx", None), int)}
    missing = sorted(set(range(config.num_hidden_layers)) - set(called))
    twice = sorted({layer for layer in called if called.count(layer) > 1})
    if missing or twice:
        layer = (missing or twice)[0]
        raise UnsupportedModel(
            f"{type(model).__name__}: layer {layer} ({names.get(layer, 'unnamed')}) called the attention hook "
            f"{called.count(layer)} times in one forward, expected once; {len(missing)} of {config.num_hidden_layers} "
            f"layers do not go through transformers' attention interface. {_STILL_WORKS}"
        )
    types = getattr(config, "layer_types", None)
    for layer, window in plan.observed:
        if types and types[layer] == "sliding_attention" and window is None:
            raise UnsupportedModel(
                f"{type(model).__name__}: layer {layer} ({names.get(layer, 'unnamed')}) has a sliding window but does "
                f"not pass it to the attention hook. {_STILL_WORKS}"
            )


def _path(tree: TokenTree, leaf: int) -> list[int]:
    path = []
    while leaf >= 0:
        path.append(leaf)
        leaf = int(tree.parents[leaf])
    return path[::-1]


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
