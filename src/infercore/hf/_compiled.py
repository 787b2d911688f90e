"""Compiled loops of this part: a step's rows into the arrays of its plan. Each also runs as plain Python."""

from typing import no_type_check

from infercore._jit import compiled_in_place


@no_type_check
@compiled_in_place
def fill_sequence(
    token_ids,
    sources,
    position_ids,
    slot_mapping,
    row_starts,
    context_lens,
    num_causal_rows,
    ancestor_bits,
    block_table,
    widths,
    seq,
    start,
    context,
    first_known,
    source,
    chain,
    node_ids,
    parents,
    slots,
    pages,
):
    """Write one sequence's rows, from row `start` on, and its line of the block table; returns whether that changed.

    ancestor_bits: [0, 0] where no bits are wanted. widths: how many pages each line of the block table holds; -1
    stands behind them. source: of the chain's only token, which the host does not know, in the numbers of `sources`;
    -1: it is known. first_known: where `token_ids` begin in these numbers.
    """
    num_chain, num_nodes = chain.shape[0], node_ids.shape[0]
    words = ancestor_bits.shape[1]
    for i in range(num_chain):
        row = start + i
        token_ids[row] = chain[i]
        sources[row] = first_known + row
        position_ids[row] = context + i
        slot_mapping[row] = slots[i]
        for word in range(words):
            ancestor_bits[row, word] = 0
    if source >= 0:
        sources[start] = source
    first = start + num_chain
    for node in range(num_nodes):
        row, parent = first + node, parents[node]
        token_ids[row] = node_ids[node]
        sources[row] = first_known + row
        position_ids[row] = position_ids[first + parent] + 1
        slot_mapping[row] = slots[num_chain + node]
        for word in range(words):
            ancestor_bits[row, word] = ancestor_bits[first + parent, word] if parent >= 0 else 0
        if words:
            ancestor_bits[row, node >> 5] |= 1 << (node & 31) if node & 31 != 31 else -(1 << 31)
    row_starts[seq + 1] = first + num_nodes
    context_lens[seq] = context
    num_causal_rows[seq] = num_chain
    width, num_pages = widths[seq], pages.shape[0]
    changed = width != num_pages
    for i in range(num_pages):
        if block_table[seq, i] != pages[i]:
            block_table[seq, i] = pages[i]
            changed = True
    for i in range(num_pages, width):
        block_table[seq, i] = -1
    widths[seq] = num_pages
    return changed


@no_type_check
@compiled_in_place
def fill_padding(
    token_ids,
    sources,
    position_ids,
    slot_mapping,
    row_starts,
    context_lens,
    num_causal_rows,
    num_rows,
    all_rows,
    num_seqs,
    all_seqs,
    first_known,
):
    """Rows and sequences behind those that are used: token 0 of no sequence, sequences without rows."""
    for row in range(num_rows, all_rows):
        token_ids[row] = 0
        sources[row] = first_known + row
        position_ids[row] = 0
        slot_mapping[row] = 0
    for seq in range(num_seqs, all_seqs):
        row_starts[seq + 1] = num_rows
        context_lens[seq] = 0
        num_causal_rows[seq] = 0


@no_type_check
@compiled_in_place
def holds_all_bits(words, count, mask):
    """Whether one of the first `count` words, which are unsigned, has every bit of `mask`."""
    for i in range(count):
        if words[i] & mask == mask:
            return True
    return False
