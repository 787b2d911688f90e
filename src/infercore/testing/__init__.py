"""State machines and reference checks, shipped so that others can test their own parts with them.

When to use it: you wrote a cache, a drafter or a verifier to the protocols of this library, or changed ours.

    from hypothesis import settings
    from infercore.testing.prefix_machine import prefix_cache_machine

    TestMyCache = prefix_cache_machine(lambda pages, size, store: MyCache(pages, size, store=store)).TestCase
    TestMyCache.settings = settings(max_examples=400, stateful_step_count=50)

One module per part. Prefix caches: `prefix_model.py` (what must hold, by brute force), `prefix_driver.py` (one
operation on cache and model), `prefix_machine.py` (Hypothesis chooses), `soak.py` (a million random operations).
Samplers: `lossless.py` (`assert_lossless`: does it draw from the model's own law?).
"""

from infercore.testing.lossless import TinyModel, assert_lossless, chi_square_p_value

__all__ = ["TinyModel", "assert_lossless", "chi_square_p_value"]
