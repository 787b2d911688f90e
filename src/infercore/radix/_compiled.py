"""The prefix tree as loops over arrays: integers and arrays in, integers out. `layout.py` says what each array holds.

A node is a page: node id = page id, and its children are the pages that may follow it. So an edge never has to be
split, a chain never merged, and giving up the tail of a branch is giving up its last pages. Node 0 (the reserved page)
is the root of the default namespace; ids from `num_pages` on are the roots of the others.

- Most pages have one child, and it stands just behind them. Such a page says so with one bit, INNER, beside its
  references: its links are implied, its other fields not even written. So what is inserted, held, given back and
  evicted as a run of pages costs one word a page, and the rest only where a run ends or branches.
- A node's first child is found without hashing, through FIRST; its other children stand in one hash table for the whole
  tree, keyed by parent and page tokens. Tokens are always compared, a hash alone never decides.
- Only the last node of an access is stamped. A node hands its stamp up when it leaves, so a node that has become a
  leaf carries the latest access to anything that ever hung below it: exact recency at O(1) per access. (Stamps that
  stand in a page since its last life are older than its present one, and never win.)
- Leaves wait for eviction in a binary heap whose keys may be out of date (too small, never too large): an entry is
  checked when it comes up, and goes back down if it was used since.
"""

from typing import no_type_check

import numpy as np

from infercore._jit import compiled_in_place

# Rows of `fields` (int32 [rows, nodes]). Of a page that is not cached only STATE means something. Of one that is INNER,
# FIRST, CHILDREN and ROOT do not, nor does the PARENT of the page behind it: `settle` writes what they would be.
PARENT = 0  # parent node; IS_ROOT of a root
FIRST = 1  # a child that is not in the hash table, -1 if none; of a leaf: -2 - (place in the heap), -1 if not there
CHILDREN = 2  # number of children
STATE = 3  # references to the page, the tree's own included, and flags; of a root: pages cached in its namespace
BUCKET = 4  # hash table: first node of each bucket, -1 if empty
CHAIN = 5  # hash table: next node in the same bucket
STAMP = 6  # clock at the last access that ended here or below a child that has left
ROOT = 7  # root of the namespace the page is cached in; right for leaves and for pages that have just left the tree
AUX = 8  # what the policy counts, if it counts: uses, a priority, or 1 for "seen before"
NUM_FIELDS = 8

REFERENCES = (1 << 28) - 1  # mask of STATE
CACHED = 1 << 28  # flag of STATE: in the tree
INNER = 1 << 29  # flag of STATE: cached, and has exactly one child, which is the next page
SOLE = 1 | CACHED | INNER  # STATE of a page inside a run that nobody holds

ABSENT = -1  # PARENT of a page that is not cached, after `settle`
IS_ROOT = -2

# Entries of `header` (int64).
NUM_PAGES, PAGE_SIZE, NUM_FREE, NUM_CACHED, NUM_HELD, HEAP_SIZE, CLOCK, CURSOR = 0, 1, 2, 3, 4, 5, 6, 7
NUM_REMOVED, NUM_COMPARED, POLICY, HAS_AUX, NUM_BUCKETS, SEED, NUM_EVICTED = 8, 9, 10, 11, 12, 13, 14
BONUS = 15  # SLRU, GHOST: how many clock ticks longer a page lives that was seen before
GHOST_PAGES, GHOST_SLOTS = 16, 17  # evicted prefixes remembered, places in their table
GHOST_NEXT = 18  # next place in the ring
NUM_LOOKUPS, NUM_HITS, NUM_LOOKED_UP, NUM_MATCHED = 19, 20, 21, 22  # the last two in tokens
FREED = 23  # a page that was freed not long ago
HEADER_SIZE = 24
CLOCK_LIMIT = 2**31 - 2**26  # stamps are int32: at this point the clock stands until `age_stamps` sets it back

# `ghost` (int64): hash of the prefix that ends at each page [num_pages]; a ring of the last evicted [GHOST_PAGES]; a
# table of them [GHOST_SLOTS], -1 empty, whose entries are places in the ring.

# Policies, the values of header[POLICY].
LRU, FIFO, LFU, SLRU, PRIORITY, GHOST = 0, 1, 2, 3, 4, 5

BLOCK_BITS = 6
BLOCK = 1 << BLOCK_BITS  # pages per entry of `free_in_block`
BLOCK_TOKENS = 128  # compared at a time inside a run
RUN_TOKENS = 1024  # of a run, whose pages are looked at before their tokens are compared
RUN_SEARCH = 8192  # pages looked at for a contiguous run before any free pages are taken


@no_type_check
@compiled_in_place
def match_pages(header, fields, tokens, query, root, touch, hold, out):
    """Walk down from `root` along `query` by whole pages; ids of the matched pages go to `out`, returns how many.

    touch: count it as a lookup, and as a use of what matched. hold: take a reference on each matched page.
    """
    count = _walk(header, fields, tokens, query, 0, query.shape[0] // header[PAGE_SIZE], root, out)
    if hold:
        num_held = 0
        for i in range(count):
            state = fields[STATE, np.uint64(out[i])] + 1
            fields[STATE, np.uint64(out[i])] = state
            num_held += (state & REFERENCES) == 2
        header[NUM_HELD] += num_held
    if touch:
        header[NUM_LOOKUPS] += 1
        header[NUM_LOOKED_UP] += query.shape[0]
        if count > 0:
            header[NUM_HITS] += 1
            header[NUM_MATCHED] += count * header[PAGE_SIZE]
            _touch(header, fields, out[count - 1], True)
    return count


@no_type_check
@compiled_in_place
def insert_pages(
    header, fields, tokens, free_in_block, heap_ids, heap_keys, ghost, query, first, node, root, pages, adopt, aux, out
):
    """Hang logical pages `first`.. of `query` below `node`, page i standing in `pages[i]`; returns how many are new.

    The tree takes a reference on each new page. Where the tree has those tokens already its page stays; with `adopt`
    the caller's page is given up for the tree's (`pages[i]` changes), and pages freed so go to `out[1:]`, their number
    to `out[0]`. Returns -1 - i, and has changed nothing, if `pages[i]` cannot be hung: not allocated, or in use
    elsewhere in the tree, or named twice.
    """
    last = pages.shape[0]
    known = out[2:]  # behind what the loop over it writes
    stop = first + _walk(header, fields, tokens, query, first, last, node, known)
    # Count and mark first, so that a page that is named twice is cached already when it comes again.
    i = stop
    while i < last:
        run = _run_length(pages, i, last)
        page = pages[i]
        if page < 1 or page + run > header[NUM_PAGES] or not _are_uncached(fields, page, run):
            bad = i
            while 1 <= pages[bad] < header[NUM_PAGES] and _are_uncached(fields, pages[bad], 1):
                bad += 1
            for j in range(stop, i):
                fields[STATE, pages[j]] = (fields[STATE, pages[j]] & REFERENCES) - 1
            return -1 - bad
        for j in range(run - 1):
            fields[STATE, np.uint64(page + j)] += np.int32(1 | CACHED | INNER)
        fields[STATE, page + run - 1] += np.int32(1 | CACHED)
        i += run

    at = known[stop - first - 1] if stop > first else node
    num_freed = 0
    if adopt:
        for i in range(first, stop):
            page = pages[i]
            mine = known[i - first]
            if page != mine:
                _hold(header, fields, mine)
                if _unhold(header, fields, free_in_block, heap_ids, heap_keys, page):
                    num_freed += 1
                    out[num_freed] = page
                pages[i] = mine
    out[0] = num_freed
    if stop > first and header[POLICY] >= SLRU and header[POLICY] != PRIORITY:
        fields[AUX, at] = 1
    now = header[CLOCK] + 1 + last - stop
    is_ghost = header[POLICY] == GHOST
    remembered = is_ghost
    i = stop
    while i < last:
        run = _run_length(pages, i, last)
        page = pages[i]
        _copy(tokens, page * header[PAGE_SIZE], query, i * header[PAGE_SIZE], run * header[PAGE_SIZE])
        if header[POLICY] == FIFO:
            for j in range(run):
                fields[STAMP, page + j] = now
        if header[HAS_AUX] != 0:
            for j in range(run):
                fields[AUX, page + j] = 0
        if is_ghost:
            above = at
            for j in range(run):
                ghost[page + j] = _prefix_hash(header, ghost, query, (i + j) * header[PAGE_SIZE], above)
                remembered = remembered and _forget(header, ghost, ghost[page + j])
                fields[AUX, page + j] = 1 if remembered else 0
                above = page + j
        if i == stop:
            _link(header, fields, tokens, heap_ids, heap_keys, page, at)
        else:  # below a page that was hung just now: no child yet, not in the heap
            fields[FIRST, at] = page
            fields[CHILDREN, at] = 1
            fields[PARENT, page] = at
        at = page + run - 1
        fields[FIRST, at] = -1
        fields[CHILDREN, at] = 0
        fields[ROOT, at] = root
        i += run
    header[NUM_HELD] += last - stop
    header[NUM_CACHED] += last - stop
    fields[STATE, root] += last - stop
    if last > first:
        header[CLOCK] = now - 1
        _touch(header, fields, at, stop == last)
        if header[POLICY] == PRIORITY and aux > fields[AUX, at]:
            fields[AUX, at] = aux
    return last - stop


@no_type_check
@compiled_in_place
def allocate_pages(header, fields, tokens, free_in_block, heap_ids, heap_keys, ghost, count, after, out, parents):
    """Take `count` free pages into `out`, evicting as needed; returns how many were evicted, or -1: nothing changed.

    Contiguous runs are preferred, and the page behind `after` (-1: no wish) for the first of them. The evicted pages
    are listed in `out` behind the taken ones. `parents` is scratch.
    """
    missing = count - header[NUM_FREE]
    if missing <= 0:
        _take(header, fields, free_in_block, count, after, out)
        return 0
    if missing > header[NUM_CACHED] - header[NUM_HELD]:
        return -1
    evicted = out[count:]
    num_evicted = _evict(header, fields, tokens, heap_ids, heap_keys, missing, -1, evicted, parents)
    if num_evicted < missing:  # leaves that someone holds stand before pages that nobody holds: put all back
        spread_roots(fields, evicted, parents, num_evicted)
        for i in range(num_evicted - 1, -1, -1):
            page = evicted[i]
            if header[POLICY] == LFU:  # stamps and marks may stay handed up, counts would count twice
                fields[AUX, parents[i]] -= fields[AUX, page]
            fields[STATE, page] += CACHED
            fields[STATE, fields[ROOT, page]] += 1
            _link(header, fields, tokens, heap_ids, heap_keys, page, parents[i])
            fields[FIRST, page] = -1
            fields[CHILDREN, page] = 0
            _push(header, fields, heap_ids, heap_keys, page)
        header[NUM_CACHED] += num_evicted
        header[NUM_REMOVED] -= num_evicted
        header[NUM_EVICTED] -= num_evicted
        return -1
    _remember_all(header, ghost, evicted, num_evicted)
    header[CURSOR] = header[FREED]
    num_free = header[NUM_FREE]
    _take(header, fields, free_in_block, num_free, after, out)
    for i in range(num_evicted):  # branches went from their tails: turned round they are in the order of memory
        out[num_free + i] = evicted[num_evicted - 1 - i]
    return num_evicted


@no_type_check
@compiled_in_place
def evict_pages(header, fields, tokens, free_in_block, heap_ids, heap_keys, ghost, count, root, out, parents):
    """Evict up to `count` pages, worst leaf first, each branch from its tail; their ids go to `out`, returns how many.

    root: evict from this namespace only, -1 for any. Leaves that someone holds are passed over. `parents[i]` becomes
    the node that `out[i]` hung below.
    """
    done = _evict(header, fields, tokens, heap_ids, heap_keys, count, root, out, parents)
    _remember_all(header, ghost, out, done)
    for i in range(done):
        fields[STATE, out[i]] = 0
        _free(header, free_in_block, out[i])
    return done


@no_type_check
@compiled_in_place
def _evict(header, fields, tokens, heap_ids, heap_keys, count, root, out, parents):
    """As `evict_pages`, without a trace in the history, and the tree's reference on each page passes to the caller."""
    done = 0
    while done < count:
        place = 0
        if root >= 0:
            place = _worst_of(header, fields, heap_ids, heap_keys, root)
        if place < 0 or place >= header[HEAP_SIZE]:
            break
        page = heap_ids[place]
        if fields[STATE, page] != (1 | CACHED):
            _remove(header, fields, heap_ids, heap_keys, place)
            continue
        key = _key(header, fields, page)
        if key > heap_keys[place]:
            heap_keys[place] = key
            _sift_down(header, fields, heap_ids, heap_keys, place)
            continue
        _remove(header, fields, heap_ids, heap_keys, place)
        # Up the branch, as long as the page above becomes the worst leaf in its turn.
        limit = key
        if root < 0:
            limit = heap_keys[0] if header[HEAP_SIZE] > 0 else np.int64(2**62)
        branch_root = fields[ROOT, page]
        before = done
        while True:
            if header[POLICY] == LRU:
                moved = _evict_inner(fields, page, count - done, limit, out[done:], parents[done:])
                if moved > 0:
                    done += moved
                    page -= moved
                    fields[ROOT, page] = branch_root
                    if done == count or fields[STAMP, page] > limit:
                        _push(header, fields, heap_ids, heap_keys, page)
                        break
            parent = _unlink(header, fields, tokens, page)
            out[done] = page
            parents[done] = parent
            done += 1
            if _is_root(header, parent) or fields[STATE, parent] != (1 | CACHED) or fields[CHILDREN, parent] != 0:
                break
            if done == count or _key(header, fields, parent) > limit:
                _push(header, fields, heap_ids, heap_keys, parent)
                break
            page = parent
        fields[STATE, branch_root] -= done - before
        header[NUM_CACHED] -= done - before
    header[NUM_REMOVED] += done
    header[NUM_EVICTED] += done
    return done


@no_type_check
@compiled_in_place
def _evict_inner(fields, page, count, limit, out, parents):
    """Under LRU, take the leaf `page` and those before it out of a run of pages; returns how many.

    Stops at `count`, before a page that is held or branches, and before one used later than `limit`. The page before
    the last one taken is a leaf then, and does not wait for eviction yet. Reads and writes two words a page.
    """
    done = 0
    at = np.uint64(page)
    stamp = fields[STAMP, at]
    while done < count and stamp <= limit and fields[STATE, at - np.uint64(1)] == SOLE:
        fields[STATE, at] = 1
        out[np.uint64(done)] = np.int32(at)
        at -= np.uint64(1)
        parents[np.uint64(done)] = np.int32(at)
        stamp = max(stamp, fields[STAMP, at])
        done += 1
    if done > 0:
        fields[STATE, at] = 1 | CACHED
        fields[STAMP, at] = stamp
        fields[FIRST, at] = -1
        fields[CHILDREN, at] = 0
    return done


@no_type_check
@compiled_in_place
def spread_roots(fields, pages, parents, count):
    """After an eviction: write the namespace into ROOT of every page that went, not only of those that were leaves."""
    for i in range(1, count):
        if parents[i - 1] == pages[i]:
            fields[ROOT, pages[i]] = fields[ROOT, pages[i - 1]]


@no_type_check
@compiled_in_place
def path_above(header, fields, gone, node, out):
    """Pages from the first one below the root down to `node`, into `out`; returns how many. O(depth).

    `gone[page]` is what a page that has just been evicted hung below, -1 for others; roots have no entry.
    """
    count = 0
    while not _is_root(header, node):
        out[count] = node
        count += 1
        node = gone[node] if gone[node] >= 0 else _parent_of(fields, node)
    for i in range(count // 2):
        page = out[i]
        out[i] = out[count - 1 - i]
        out[count - 1 - i] = page
    return count


@no_type_check
@compiled_in_place
def retain_pages(header, fields, pages):
    """One more reference on each page; returns 0, or -1 - i and changes nothing if `pages[i]` is not allocated."""
    for i in range(pages.shape[0]):
        if pages[i] < 1 or pages[i] >= header[NUM_PAGES] or fields[STATE, pages[i]] == 0:
            return -1 - i
    for i in range(pages.shape[0]):
        _hold(header, fields, pages[i])
    return 0


@no_type_check
@compiled_in_place
def release_pages(header, fields, free_in_block, heap_ids, heap_keys, pages, out):
    """One reference less on each page; those freed go to `out`, returns how many.

    Returns -1 - i, and changes nothing, if the caller can hold no reference on `pages[i]` (the tree's own does not
    count); a page may be named as often as it is held.
    """
    num_pages = header[NUM_PAGES]
    last = pages.shape[0]
    num_freed = 0
    num_let_go = 0
    num_leaves = 0  # at the end of `out`, which has a place for each page
    for i in range(last):
        page = pages[i]
        state = np.int32(0)
        if 0 < page < num_pages:
            state = fields[STATE, np.uint64(page)]
        if (state & REFERENCES) <= (1 if state & CACHED else 0):
            for j in range(i):
                fields[STATE, pages[j]] += 1
            return -1 - i
        state -= np.int32(1)
        fields[STATE, np.uint64(page)] = state
        if (state & ~INNER) == (1 | CACHED):
            num_let_go += 1
            if state & INNER == 0:
                num_leaves += 1
                out[last - num_leaves] = page
        elif state == 0:
            out[num_freed] = page
            num_freed += 1
    for i in range(last - num_leaves, last):
        _push_if_leaf(header, fields, heap_ids, heap_keys, out[i])
    for i in range(num_freed):
        _free(header, free_in_block, out[i])
    header[NUM_HELD] -= num_let_go
    return num_freed


@no_type_check
@compiled_in_place
def remove_pages(header, fields, tokens, free_in_block, heap_ids, heap_keys, ghost, node, out, marks):
    """Take `node` and all below it out of the tree (of a root: only what is below it); ids to `out`, returns how many.

    Pages that nobody else holds are freed; the others stay with their holders. `marks` (int8 [nodes]) is scratch.
    """
    settle(header, fields)
    num_pages = header[NUM_PAGES]
    is_root = _is_root(header, node)
    count = 0
    if is_root:
        for page in range(1, num_pages):
            if fields[STATE, page] & CACHED and fields[ROOT, page] == node:
                out[count] = page
                count += 1
    else:
        # 1: below the node, 2: not; walk up until a marked page, then mark the way that was walked.
        marks[:] = 0
        marks[node] = 1
        for page in range(1, num_pages):
            if fields[PARENT, page] == ABSENT:
                continue
            at = page
            while marks[at] == 0 and fields[PARENT, at] >= 0:
                at = fields[PARENT, at]
            verdict = 2 if marks[at] == 0 else marks[at]
            at = page
            while marks[at] == 0 and fields[PARENT, at] >= 0:
                marks[at] = verdict
                at = fields[PARENT, at]
        for page in range(1, num_pages):
            if marks[page] == 1 and fields[STATE, page] & CACHED:
                out[count] = page
                count += 1
    # A page may go once all below it have: cut leaves, climbing while the parent is to go as well.
    above = fields[PARENT, node]
    branch_root = node if is_root else fields[ROOT, node]
    for i in range(count):
        page = out[i]
        while (
            not _is_root(header, page)
            and fields[STATE, page] & CACHED
            and fields[CHILDREN, page] == 0
            and (is_root or marks[page] == 1)
        ):
            if fields[FIRST, page] < -1:
                _remove(header, fields, heap_ids, heap_keys, -2 - fields[FIRST, page])
            parent = _unlink(header, fields, tokens, page)
            if fields[STATE, page] > 1:
                header[NUM_HELD] -= 1
            fields[STATE, page] -= 1
            if fields[STATE, page] == 0:
                _free(header, free_in_block, page)
            page = parent
    fields[STATE, branch_root] -= count
    header[NUM_CACHED] -= count
    header[NUM_REMOVED] += count
    if above > 0:
        _push_if_leaf(header, fields, heap_ids, heap_keys, above)
    return count


@no_type_check
@compiled_in_place
def settle(header, fields):
    """Write the fields that runs of pages imply, so that PARENT, FIRST, CHILDREN and ROOT of every page can be read.

    PARENT of a page that is not cached becomes ABSENT. Changes nothing that the tree means. O(pool).
    """
    for page in range(1, header[NUM_PAGES]):
        if fields[STATE, page] & CACHED == 0:
            fields[PARENT, page] = ABSENT
            continue
        fields[PARENT, page] = _parent_of(fields, page)
        if fields[STATE, page] & INNER:
            fields[FIRST, page] = page + 1
            fields[CHILDREN, page] = 1
        if fields[CHILDREN, page] > 0:
            fields[ROOT, page] = -1
    for page in range(1, header[NUM_PAGES]):  # from each leaf up, to where another leaf has been
        if fields[STATE, page] & CACHED and fields[CHILDREN, page] == 0:
            at = fields[PARENT, page]
            while not _is_root(header, at) and fields[ROOT, at] < 0:
                fields[ROOT, at] = fields[ROOT, page]
                at = fields[PARENT, at]


@no_type_check
@compiled_in_place
def age_stamps(header, fields, heap_ids, heap_keys, shift):
    """Set the clock back by `shift`; stamps older than that become 0. The heap is built anew."""
    header[CLOCK] -= shift
    for node in range(fields.shape[1]):
        fields[STAMP, node] = max(0, fields[STAMP, node] - shift)
    count = header[HEAP_SIZE]
    header[HEAP_SIZE] = 0
    for place in range(count):  # the entry at `place` is read before any push reaches that place
        _push(header, fields, heap_ids, heap_keys, heap_ids[place])


@no_type_check
@compiled_in_place
def slots_of(pages, start, page_size, out):
    """Slots of rows `start` .. of a sequence that stands in `pages`, as many as `out` (int64) holds."""
    page_pos = start // page_size
    row = 0
    offset = start - page_pos * page_size
    while row < out.shape[0]:
        slot = np.int64(pages[page_pos]) * page_size + offset
        stop = min(out.shape[0], row + page_size - offset)
        for i in range(row, stop):
            out[np.uint64(i)] = slot + (i - row)
        row = stop
        offset = 0
        page_pos += 1


@no_type_check
@compiled_in_place
def _walk(header, fields, tokens, query, first, last, node, out):
    """Walk down from `node` along the logical pages `first` .. `last` - 1 of `query`; pages found go to `out`.

    Returns how many. Compares no token of the query twice but at branches, where the first child is tried before the
    others are looked up: at most L + page_size x (nodes on the path) comparisons, collisions of the hash aside.
    """
    page_size = header[PAGE_SIZE]
    longest = max(1, RUN_TOKENS // page_size)
    todo = last - first
    count = 0
    compared = 0
    while count < todo:
        start = (first + count) * page_size
        inside = fields[STATE, node] & INNER
        child = node + 1 if inside else fields[FIRST, node]
        if inside or (child >= 0 and fields[CHILDREN, node] == 1):  # an only child: nothing else to compare with
            run = 1 + _num_inner(fields, child, min(longest, todo - count, header[NUM_PAGES] - child) - 1)
            same = _first_difference(tokens, child * page_size, query, start, run * page_size)
            found = same // page_size
            for i in range(found):
                out[np.uint64(count + i)] = np.int32(child + i)
            count += found
            compared += min(run * page_size, same + 1)
            if found < run:
                break
            node = child + run - 1
            continue
        if child >= 0:
            compared += page_size
            if _same(tokens, child * page_size, query, start, page_size):
                out[count] = child
                count += 1
                node = child
                continue
        elif fields[CHILDREN, node] == 0:
            break
        child = fields[BUCKET, _bucket(header, query, start, node)]
        while child >= 0:
            if fields[PARENT, child] == node:
                compared += page_size
                if _same(tokens, child * page_size, query, start, page_size):
                    break
            child = fields[CHAIN, child]
        if child < 0:
            break
        out[count] = child
        count += 1
        node = child
    header[NUM_COMPARED] += compared
    return count


@no_type_check
@compiled_in_place
def _num_inner(fields, page, count):
    """How many of the `count` pages from `page` on are INNER before one is not."""
    inner = np.int32(INNER)
    for i in range(count):
        inner &= fields[STATE, np.uint64(page + i)]
    if inner != 0:
        return count
    at = 0
    while at < count and fields[STATE, page + at] & INNER:
        at += 1
    return at


@no_type_check
@compiled_in_place
def _first_difference(tokens, start, query, query_start, count):
    """How many of `count` tokens agree before the first that does not. No token is compared twice."""
    done = 0
    while done + BLOCK_TOKENS <= count:
        same = _agreeing(tokens, start + done, query, query_start + done, BLOCK_TOKENS)
        if same < BLOCK_TOKENS:  # a branch, so that the next block does not wait for this one
            return done + same
        done += BLOCK_TOKENS
    if done + 64 <= count:
        same = _agreeing(tokens, start + done, query, query_start + done, 64)
        if same < 64:
            return done + same
        done += 64
    if done + 32 <= count:
        same = _agreeing(tokens, start + done, query, query_start + done, 32)
        if same < 32:
            return done + same
        done += 32
    if done + 16 <= count:
        same = _agreeing(tokens, start + done, query, query_start + done, 16)
        if same < 16:
            return done + same
        done += 16
    while done < count and tokens[start + done] == query[query_start + done]:
        done += 1
    return done


@no_type_check
@compiled_in_place
def _agreeing(tokens, start, query, query_start, size):
    """As `_first_difference`; with a literal `size` the loop is one of vector operations without branches.

    A minimum of places is as fast as asking whether any token differs. Unsigned indices: numba asks of signed ones
    whether they count from the end, which keeps the loop from vector units.
    """
    at = np.uint64(start)
    query_at = np.uint64(query_start)
    same = np.int32(size)
    for i in range(size):
        here = np.int32(i) if tokens[at + np.uint64(i)] != query[query_at + np.uint64(i)] else np.int32(size)
        same = min(same, here)
    return same


@no_type_check
@compiled_in_place
def _same(tokens, start, query, query_start, page_size):
    """Whether one page of tokens equals one page of `query`; without branches inside a page of 16."""
    at = np.uint64(start)
    query_at = np.uint64(query_start)
    if page_size == 16:
        different = np.int32(0)
        for i in range(16):
            different |= tokens[at + np.uint64(i)] ^ query[query_at + np.uint64(i)]
        return different == 0
    for i in range(page_size):
        if tokens[at + np.uint64(i)] != query[query_at + np.uint64(i)]:
            return False
    return True


@no_type_check
@compiled_in_place
def _copy(tokens, start, query, query_start, count):
    at = np.uint64(start)
    query_at = np.uint64(query_start)
    for i in range(count):
        tokens[at + np.uint64(i)] = query[query_at + np.uint64(i)]


@no_type_check
@compiled_in_place
def _run_length(pages, start, stop):
    """How many of `pages[start:stop]` follow each other in memory from the first on."""
    at = start + 1
    while at < stop and pages[at] == pages[at - 1] + 1:
        at += 1
    return at - start


@no_type_check
@compiled_in_place
def _are_uncached(fields, page, count):
    """Whether `count` pages from `page` on are allocated, and not in the tree."""
    flags = np.int32(0)
    free = np.int32(0)
    for i in range(count):
        flags |= fields[STATE, np.uint64(page + i)]
        free |= fields[STATE, np.uint64(page + i)] - np.int32(1)  # negative for a free page
    return flags & CACHED == 0 and free >= 0


@no_type_check
@compiled_in_place
def _bucket(header, query, start, node):
    """Hash of (parent, page tokens), seeded per cache; 31-bit steps, so that plain Python integers give the same."""
    mixed = header[SEED] ^ (node * 2)
    for i in range(header[PAGE_SIZE]):
        product = (mixed ^ query[start + i]) * 1640531527
        mixed = (product ^ (product >> 31)) & 0x7FFFFFFF
    return (mixed * header[NUM_BUCKETS]) >> 31


@no_type_check
@compiled_in_place
def _is_root(header, node):
    return node == 0 or node >= header[NUM_PAGES]


@no_type_check
@compiled_in_place
def _parent_of(fields, page):
    return page - 1 if fields[STATE, page - 1] & INNER else fields[PARENT, page]


@no_type_check
@compiled_in_place
def _link(header, fields, tokens, heap_ids, heap_keys, page, parent):
    """Hang `page`, whose tokens and STATE are set, below `parent`. Counts nothing."""
    if fields[STATE, parent] & INNER and not _is_root(header, parent):  # it branches now: what was implied is written
        fields[STATE, parent] -= INNER
        fields[FIRST, parent] = parent + 1
        fields[CHILDREN, parent] = 1
        fields[PARENT, parent + 1] = parent
    if fields[CHILDREN, parent] == 0:
        if fields[FIRST, parent] < -1:
            _remove(header, fields, heap_ids, heap_keys, -2 - fields[FIRST, parent])
        fields[FIRST, parent] = page
        if page == parent + 1 and parent > 0:
            fields[STATE, parent] += INNER
    elif fields[FIRST, parent] == -1:
        fields[FIRST, parent] = page
    else:
        bucket = _bucket(header, tokens, page * header[PAGE_SIZE], parent)
        fields[CHAIN, page] = fields[BUCKET, bucket]
        fields[BUCKET, bucket] = page
    fields[CHILDREN, parent] += 1
    fields[PARENT, page] = parent


@no_type_check
@compiled_in_place
def _unlink(header, fields, tokens, page):
    """Take a leaf that does not wait for eviction out of the tree; returns its parent. Counts nothing.

    The parent inherits how recently the page was used.
    """
    parent = _parent_of(fields, page)
    fields[STATE, page] -= CACHED
    if _is_root(header, parent):
        _forget_child(header, fields, tokens, page, parent)
        return parent
    if fields[STATE, parent] & INNER:
        fields[STATE, parent] -= INNER
        fields[FIRST, parent] = -1
        fields[CHILDREN, parent] = 0
    else:
        _forget_child(header, fields, tokens, page, parent)
        if fields[CHILDREN, parent] == 1 and fields[FIRST, parent] == parent + 1:
            fields[STATE, parent] += INNER
    fields[ROOT, parent] = fields[ROOT, page]
    if header[POLICY] != FIFO and fields[STAMP, page] > fields[STAMP, parent]:
        fields[STAMP, parent] = fields[STAMP, page]
    if header[HAS_AUX]:
        if header[POLICY] == LFU:
            fields[AUX, parent] = min(fields[AUX, parent] + fields[AUX, page], 1 << 30)
        else:
            fields[AUX, parent] = max(fields[AUX, parent], fields[AUX, page])
    return parent


@no_type_check
@compiled_in_place
def _forget_child(header, fields, tokens, page, parent):
    """Take `page` out of the children of a node that is not INNER."""
    if fields[FIRST, parent] == page:
        fields[FIRST, parent] = -1
    else:
        bucket = _bucket(header, tokens, page * header[PAGE_SIZE], parent)
        at = fields[BUCKET, bucket]
        if at == page:
            fields[BUCKET, bucket] = fields[CHAIN, page]
        else:
            while fields[CHAIN, at] != page:
                at = fields[CHAIN, at]
            fields[CHAIN, at] = fields[CHAIN, page]
    fields[CHILDREN, parent] -= 1


@no_type_check
@compiled_in_place
def _touch(header, fields, node, again):
    """Count a use that ends at `node`; `again` if the page was cached before."""
    if header[CLOCK] < CLOCK_LIMIT:
        header[CLOCK] += 1
    if header[POLICY] != FIFO:
        fields[STAMP, node] = header[CLOCK]
    if header[POLICY] == LFU:
        fields[AUX, node] = min(fields[AUX, node] + 1, 1 << 30)
    elif again and (header[POLICY] == SLRU or header[POLICY] == GHOST):
        fields[AUX, node] = 1


@no_type_check
@compiled_in_place
def _prefix_hash(header, ghost, query, start, parent):
    """62-bit hash of the prefix that ends with the page of tokens at `query[start:]`, below `parent`."""
    above = parent + 1 if parent == 0 or parent >= header[NUM_PAGES] else ghost[parent]
    low = header[SEED] ^ (above & 0x7FFFFFFF)
    high = above >> 31
    for i in range(header[PAGE_SIZE]):
        product = (low ^ query[start + i]) * 1640531527
        low = (product ^ (product >> 31)) & 0x7FFFFFFF
        product = ((high + i) ^ query[start + i]) * 1103515245
        high = (product ^ (product >> 29)) & 0x7FFFFFFF
    return (np.int64(high) << 31) | np.int64(low)


@no_type_check
@compiled_in_place
def _ghost_slot(header, ghost, hashed):
    """Place of `hashed` in the table of evicted prefixes, or the empty place where it would go."""
    ring = header[NUM_PAGES]
    table = ring + header[GHOST_PAGES]
    slot = ((hashed & 0x7FFFFFFF) * header[GHOST_SLOTS]) >> 31
    while ghost[table + slot] >= 0 and ghost[ring + ghost[table + slot]] != hashed:
        slot += 1
        if slot == header[GHOST_SLOTS]:
            slot = 0
    return slot


@no_type_check
@compiled_in_place
def _remember_all(header, ghost, pages, count):
    if header[POLICY] == GHOST:
        for i in range(count):
            _remember(header, ghost, ghost[pages[i]])


@no_type_check
@compiled_in_place
def _remember(header, ghost, hashed):
    """Add an evicted prefix to the history; the oldest one leaves."""
    if header[GHOST_PAGES] == 0:
        return
    _forget(header, ghost, hashed)
    ring = header[NUM_PAGES]
    place = header[GHOST_NEXT]
    oldest = ghost[ring + place]
    if oldest >= 0:
        _forget(header, ghost, oldest)
    ghost[ring + place] = hashed
    ghost[ring + header[GHOST_PAGES] + _ghost_slot(header, ghost, hashed)] = place
    header[GHOST_NEXT] = place + 1 if place + 1 < header[GHOST_PAGES] else 0


@no_type_check
@compiled_in_place
def _forget(header, ghost, hashed):
    """Take a prefix out of the history; whether it was there. Later entries of its cluster move up."""
    if header[GHOST_PAGES] == 0:
        return False
    slots = header[GHOST_SLOTS]
    ring = header[NUM_PAGES]
    table = ring + header[GHOST_PAGES]
    hole = _ghost_slot(header, ghost, hashed)
    if ghost[table + hole] < 0:
        return False
    ghost[ring + ghost[table + hole]] = -1
    ghost[table + hole] = -1
    slot = hole
    while True:
        slot = slot + 1 if slot + 1 < slots else 0
        entry = ghost[table + slot]
        if entry < 0:
            return True
        home = ((ghost[ring + entry] & 0x7FFFFFFF) * slots) >> 31
        # Its home lies (cyclically) at or before the hole: it may move there.
        if (slot - home) % slots >= (slot - hole) % slots:
            ghost[table + hole] = entry
            ghost[table + slot] = -1
            hole = slot


@no_type_check
@compiled_in_place
def _hold(header, fields, page):
    fields[STATE, page] += 1
    if fields[STATE, page] & ~INNER == 2 | CACHED:
        header[NUM_HELD] += 1


@no_type_check
@compiled_in_place
def _unhold(header, fields, free_in_block, heap_ids, heap_keys, page):
    """Give one reference back; True if that freed the page. A leaf that only the tree holds waits for eviction."""
    fields[STATE, page] -= 1
    if fields[STATE, page] == 0:
        _free(header, free_in_block, page)
        return True
    if fields[STATE, page] & ~INNER == 1 | CACHED:
        header[NUM_HELD] -= 1
        _push_if_leaf(header, fields, heap_ids, heap_keys, page)
    return False


@no_type_check
@compiled_in_place
def _free(header, free_in_block, page):
    header[NUM_FREE] += 1
    header[FREED] = page
    free_in_block[page >> BLOCK_BITS] += 1


@no_type_check
@compiled_in_place
def _take(header, fields, free_in_block, count, after, out):
    """Take `count` of the free pages (there are enough): behind `after`, else a run, else from the cursor on."""
    num_pages = header[NUM_PAGES]
    header[NUM_FREE] -= count
    taken = 0
    page = after + 1
    while 0 < page < num_pages and taken < count and fields[STATE, page] == 0:
        fields[STATE, page] = 1
        free_in_block[page >> BLOCK_BITS] -= 1
        out[taken] = page
        taken += 1
        page += 1
    if taken == count:
        return
    page = header[CURSOR]
    if count - taken > 1:
        start = _find_run(header, fields, free_in_block, count - taken)
        if start > 0:
            page = start
    while taken < count:
        if page >= num_pages:
            page = 1
        if (page & (BLOCK - 1)) == 0 and free_in_block[page >> BLOCK_BITS] == 0:
            page += BLOCK
            continue
        if fields[STATE, np.uint64(page)] == 0:
            fields[STATE, np.uint64(page)] = 1
            free_in_block[np.uint64(page >> BLOCK_BITS)] -= 1
            out[np.uint64(taken)] = page
            taken += 1
        page += 1
    header[CURSOR] = page if page < num_pages else 1


@no_type_check
@compiled_in_place
def _find_run(header, fields, free_in_block, count):
    """First of `count` free pages in a row, looking from the cursor on for a bounded time; -1 if none was met."""
    num_pages = header[NUM_PAGES]
    budget = min(RUN_SEARCH, 32 * count + 256, num_pages)
    page = header[CURSOR]
    run = 0
    while budget > 0:
        if page >= num_pages:
            page = 1
            run = 0
        if (page & (BLOCK - 1)) == 0 and free_in_block[page >> BLOCK_BITS] == 0:
            page += BLOCK
            run = 0
            budget -= 1
            continue
        if fields[STATE, page] == 0:
            run += 1
            if run == count:
                return page - count + 1
        else:
            run = 0
        page += 1
        budget -= 1
    return -1


@no_type_check
@compiled_in_place
def _key(header, fields, page):
    """What the policy orders leaves by, least first out; it only grows while a leaf waits."""
    if header[POLICY] == LRU or header[POLICY] == FIFO:
        return np.int64(fields[STAMP, page])
    if header[POLICY] == SLRU or header[POLICY] == GHOST:
        shifted = np.int64(fields[STAMP, page]) + fields[AUX, page] * header[BONUS]
        return (shifted << 32) | np.int64(fields[STAMP, page])
    return (np.int64(fields[AUX, page]) << 32) | np.int64(fields[STAMP, page])


@no_type_check
@compiled_in_place
def _push_if_leaf(header, fields, heap_ids, heap_keys, page):
    """Let `page` wait for eviction if it is a leaf that only the tree holds, and does not wait already."""
    if fields[STATE, page] == 1 | CACHED and fields[CHILDREN, page] == 0 and fields[FIRST, page] == -1:
        _push(header, fields, heap_ids, heap_keys, page)


@no_type_check
@compiled_in_place
def _push(header, fields, heap_ids, heap_keys, page):
    place = header[HEAP_SIZE]
    header[HEAP_SIZE] += 1
    _sift_up(fields, heap_ids, heap_keys, place, page, _key(header, fields, page))


@no_type_check
@compiled_in_place
def _remove(header, fields, heap_ids, heap_keys, place):
    """Take the entry at `place` out of the heap."""
    fields[FIRST, heap_ids[place]] = -1
    header[HEAP_SIZE] -= 1
    last = header[HEAP_SIZE]
    if place == last:
        return
    page = heap_ids[last]
    key = heap_keys[last]
    if place > 0 and key < heap_keys[(place - 1) >> 1]:
        _sift_up(fields, heap_ids, heap_keys, place, page, key)
    else:
        heap_ids[place] = page
        heap_keys[place] = key
        _sift_down(header, fields, heap_ids, heap_keys, place)


@no_type_check
@compiled_in_place
def _sift_up(fields, heap_ids, heap_keys, place, page, key):
    while place > 0:
        above = (place - 1) >> 1
        if heap_keys[above] <= key:
            break
        heap_ids[place] = heap_ids[above]
        heap_keys[place] = heap_keys[above]
        fields[FIRST, heap_ids[place]] = -2 - place
        place = above
    heap_ids[place] = page
    heap_keys[place] = key
    fields[FIRST, page] = -2 - place


@no_type_check
@compiled_in_place
def _sift_down(header, fields, heap_ids, heap_keys, place):
    size = header[HEAP_SIZE]
    page = heap_ids[place]
    key = heap_keys[place]
    while True:
        below = 2 * place + 1
        if below >= size:
            break
        if below + 1 < size and heap_keys[below + 1] < heap_keys[below]:
            below += 1
        if heap_keys[below] >= key:
            break
        heap_ids[place] = heap_ids[below]
        heap_keys[place] = heap_keys[below]
        fields[FIRST, heap_ids[place]] = -2 - place
        place = below
    heap_ids[place] = page
    heap_keys[place] = key
    fields[FIRST, page] = -2 - place


@no_type_check
@compiled_in_place
def _worst_of(header, fields, heap_ids, heap_keys, root):
    """Place in the heap of the leaf of one namespace that goes first, -1 if none waits. O(leaves)."""
    worst = -1
    worst_key = 0
    for place in range(header[HEAP_SIZE]):
        page = heap_ids[place]
        if fields[ROOT, page] == root:
            key = _key(header, fields, page)
            if worst < 0 or key < worst_key:
                worst = place
                worst_key = key
    return worst
