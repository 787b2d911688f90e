"""What an engine says of itself."""

from infercore import _jit
from infercore.hf.graphs import StepGraphs
from infercore.hf.packed_model import PackedModel
from infercore.hf.stats import EngineStats
from infercore.radix import PrefixCache


def report(
    model: PackedModel, cache: PrefixCache, graphs: StepGraphs | None, stats: EngineStats, *, num_unfinished: int
) -> str:
    """What the engine runs on, in a few lines: model, device, pool, compiled loops, graphs, requests, acceptance."""
    counts = cache.counts()
    size_mb = model.bytes_per_token * counts.total * cache.page_size / 2**20
    lines = [
        f"model      {model.describe()}",
        f"KV pool    {counts.total} pages of {cache.page_size} tokens ({size_mb:.0f} MiB): "
        f"{counts.free} free, {counts.cached} cached, {counts.in_use} in use",
        f"CPU loops  {_jit.status()}",
        f"graphs     {graphs.describe() if graphs is not None else 'none: not on a GPU, or turned off'}",
        f"requests   {stats.num_requests} finished, {num_unfinished} unfinished, {stats.num_preemptions} preemptions",
    ]
    if cache.host is not None:
        host = cache.host.stats
        limit_mb = host.num_slots * host.slot_bytes / 2**20
        lines.insert(
            2,
            f"host cache {host.num_used} of {host.num_slots} pages used ({limit_mb:.0f} MiB); "
            f"out {host.bytes_out / 2**20:.0f} MiB, back {host.bytes_back / 2**20:.0f} MiB: "
            f"{host.num_tokens_back} tokens for {host.num_fetches} requests",
        )
    for name, by_depth in stats.acceptance.items():
        rates = ", ".join(f"{accepted}/{drafted}" for drafted, accepted in by_depth)
        lines.append(f"accepted   {name}, by depth: {rates}")
    return "\n".join(lines)
