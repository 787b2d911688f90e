"""A grammar alone, in a sampling loop of one's own: here the "model" is a random number generator.

python examples/grammar.py
"""

import random

import torch

from infercore.constrained import Vocabulary, allocate_bitmask, regex

END = 256


def main() -> None:
    """Draw five dates from noise: every mask leaves only what can still become a date."""
    vocabulary = Vocabulary([bytes([i]) for i in range(256)] + [None], eos_token_ids=[END])
    grammar = regex(r"20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])").bind(vocabulary)
    draws = random.Random(0)
    bitmask = allocate_bitmask(1, vocabulary.vocab_size)
    for _ in range(5):
        state, text = grammar.start, b""
        while True:
            grammar.fill_bitmask([state], bitmask)
            words = bitmask[0].to(torch.int64)
            allowed = [i for i in range(vocabulary.vocab_size) if words[i // 32] >> (i % 32) & 1]
            token_id = draws.choice(allowed)
            if token_id == END:
                break
            state, text = grammar.advance(state, token_id), text + bytes([token_id])
        print(text.decode())


if __name__ == "__main__":
    main()
