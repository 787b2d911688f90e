"""Random operations on a prefix cache beside the brute-force model: `python -m infercore.testing.soak --ops 1000000`.

Needs no Hypothesis. A failure prints the seed and the number of the operation; the same seed runs the same operations.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from infercore.radix import FIFO, LFU, LRU, SLRU, GhostHistory, Policy, PrefixCache, Priority
from infercore.testing.prefix_driver import ENDLESS, ArrayStore, PrefixDriver, make_driver

_POLICIES = ("lru", "fifo", "lfu", "priority", "slru", "ghost")
_NAMESPACES: tuple[Any, ...] = (None, "a", 7)


def soak(
    num_ops: int,
    *,
    seed: int = 0,
    policy: str = "lru",
    with_host: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Run `num_ops` random operations, starting afresh with another pool every 20,000.

    with_host: give each cache a `HostTier`, of few slots or endless.
    Raises: AssertionError at the first difference, with seed and operation.
    """
    draw = random.Random(seed)
    began = time.perf_counter()
    done = 0
    while done < num_ops:
        driver = _fresh(draw, policy, with_host)
        for _ in range(min(20_000, num_ops - done)):
            try:
                _one(draw, driver)
                if done % 16 == 0:
                    driver.check()
                if done % 256 == 0:
                    driver.check_contents()
            except Exception as error:
                raise AssertionError(f"operation {done} of seed {seed}, policy {policy}: {error}") from error
            done += 1
        driver.check()
        driver.finish()
        seconds = time.perf_counter() - began
        report(f"{done} operations, {done / seconds:,.0f} a second, no difference")


def _fresh(draw: random.Random, policy: str, with_host: bool) -> PrefixDriver:
    num_pages, page_size = draw.randint(6, 48), draw.choice([1, 2, 3, 4])
    store = ArrayStore(num_pages, page_size)
    records, bonus, num_ghosts = _policy(policy, num_pages, page_size, draw)
    cache = PrefixCache(num_pages, page_size, store=store, policy=records, poison=True)
    order: Any = "seen" if policy in ("slru", "ghost") else policy
    num_host_slots = draw.choice([2, num_pages, 4 * num_pages, ENDLESS]) if with_host else 0
    return make_driver(cache, store, order=order, bonus=bonus, num_ghosts=num_ghosts, num_host_slots=num_host_slots)


def _policy(name: str, num_pages: int, page_size: int, draw: random.Random) -> tuple[Policy, int, int]:
    """The policy, and what the model needs to follow it: ticks of bonus and how many evicted prefixes it remembers."""
    match name:
        case "slru":
            return SLRU(2.0), 2 * num_pages, 0
        case "ghost":
            horizon, factor = draw.choice([0, 3, 40]) * num_pages, draw.choice([0.0, 0.5, 2.0])
            policy = GhostHistory(horizon * page_size, factor)
            return policy, max(0, horizon - num_pages), min(int(factor * num_pages), horizon)
    plain: dict[str, Policy] = {"lru": LRU(), "fifo": FIFO(), "lfu": LFU(), "priority": Priority()}
    return plain[name], 0, 0


def _one(draw: random.Random, driver: PrefixDriver) -> None:
    """One operation; as long as there is little, more is opened than closed."""
    kind = draw.random()
    which = draw.randrange(1 << 16)
    namespace = draw.choices(_NAMESPACES, (6, 3, 1))[0]
    size = driver.model.page_size
    if driver.host is not None and draw.random() < 0.2:
        _one_of_host(draw, driver, which, namespace)
    elif kind < 0.14:
        if len(driver.tracks) < 6:
            driver.open(_tokens(draw, driver, namespace), namespace)
        else:
            driver.close(which, insert=draw.random() < 0.8)
    elif kind < 0.46:
        num_rows = draw.randint(0, 3 * size)
        tokens = [draw.randrange(2) for _ in range(draw.randint(0, num_rows))]
        driver.step(which, num_rows, tokens, draw.getrandbits(16), draw.random() < 0.2)
    elif kind < 0.56:
        driver.match(_tokens(draw, driver, namespace), namespace, lock=len(driver.locks) < 3 and draw.random() < 0.3)
    elif kind < 0.62:
        driver.publish(which)
    elif kind < 0.68:
        driver.rollback(which, draw.randint(0, 2 * size))
    elif kind < 0.73:
        if len(driver.tracks) < 8:
            driver.fork(which)
    elif kind < 0.78:
        if len(driver.raw) < 3:
            driver.insert(_tokens(draw, driver, namespace), namespace, draw.randrange(3))
    elif kind < 0.80:
        if len(driver.raw) < 3:
            driver.allocate(draw.randint(0, driver.model.num_pages))
    elif kind < 0.85:
        driver.release(which)
    elif kind < 0.89:
        driver.unlock(which)
    elif kind < 0.92:
        driver.evict(draw.choice([0, 1, 2, 5, 100]))
    elif kind < 0.94:
        driver.insert_wrong(_tokens(draw, driver, namespace), namespace)
    elif kind < 0.943:
        driver.clear(namespace)
    elif kind < 0.955:
        driver.invalidate(_tokens(draw, driver, namespace), namespace)
    elif kind < 0.965:
        if len(driver.pins) < 2:
            driver.pin(_tokens(draw, driver, namespace), namespace)
    elif kind < 0.975:
        driver.unpin(which)
    else:
        driver.close(which, insert=draw.random() < 0.8)


def _one_of_host(draw: random.Random, driver: PrefixDriver, which: int, namespace: Any) -> None:
    """One operation of the host tier."""
    kind = draw.random()
    if kind < 0.5:
        if len(driver.arrivals) < 3 and len(driver.tracks) < 8:
            tokens = _tokens(draw, driver, namespace)
            if driver.model.kept and draw.random() < 0.8:
                path = draw.choice(list(driver.model.kept))
                namespace = path[0]
                tokens = [token for page in path[1:] for token in page] + tokens[:3]
            driver.fetch(tokens, namespace)
    elif kind < 0.85:
        driver.land(which)
    else:
        driver.call_off(which)


def _tokens(draw: random.Random, driver: PrefixDriver, namespace: Any) -> list[int]:
    """Tokens over a small alphabet; half the time they go along something that is cached."""
    tokens = [draw.randrange(2) for _ in range(draw.randint(0, 6 * driver.model.page_size))]
    if driver.model.cached and draw.random() < 0.5:
        path = draw.choice(list(driver.model.cached))
        if path[0] == namespace:
            return [token for page in path[1:] for token in page] + tokens[: draw.randint(0, 4)]
    return tokens


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m infercore.testing.soak", description=__doc__)
    parser.add_argument("--ops", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", choices=_POLICIES, default="lru")
    parser.add_argument("--host", action="store_true", help="with a second tier in host memory")
    options = parser.parse_args(arguments)
    try:
        soak(options.ops, seed=options.seed, policy=options.policy, with_host=options.host)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
