"""The prefix cache alone, as a scheduler would use it: no model, no tensors, only which pages hold what.

python examples/prefix_cache.py
"""

import numpy as np

from infercore.radix import PrefixCache

SYSTEM_PROMPT = np.arange(100, 140, dtype=np.int32)  # 40 tokens: two whole pages of 16, and 8 more


def serve(cache: PrefixCache, prompt: np.ndarray, num_new_tokens: int) -> None:
    """One request: take what is cached, reserve slots for the rest, pretend to compute, publish."""
    sequence = cache.open(prompt[:-1])  # the last token must be computed, for its logits
    num_cached = sequence.num_tokens
    slots = sequence.append(len(prompt) - num_cached)  # where a kernel would write K/V of the rest
    sequence.commit(prompt[num_cached:])
    for token_id in range(num_new_tokens):
        sequence.append(1)
        sequence.commit([token_id])
    print(f"{num_cached:3} tokens were cached, {len(slots)} computed into slots {slots[0]} to {slots[-1]}")
    sequence.close()


def main() -> None:
    """Three requests: two share a system prompt, the third continues the first one's conversation."""
    cache = PrefixCache(num_pages=64, page_size=16)
    first = np.concatenate([SYSTEM_PROMPT, np.arange(200, 220, dtype=np.int32)])
    serve(cache, first, num_new_tokens=10)
    serve(cache, np.concatenate([SYSTEM_PROMPT, np.arange(300, 330, dtype=np.int32)]), num_new_tokens=10)
    serve(cache, np.concatenate([first, np.arange(10, dtype=np.int32), [500, 501]]), num_new_tokens=10)
    print(cache.render())


if __name__ == "__main__":
    main()
