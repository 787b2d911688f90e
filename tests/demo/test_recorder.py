"""What became of each draft is told right."""

import numpy as np

from infercore.demo.recorder import Recorder
from infercore.speculative import DraftRequest, NGramDrafter, TokenTree


class FixedDrafter:
    """Proposes the same tree for everybody."""

    def __init__(self, tree: TokenTree) -> None:
        self.tree = tree

    def propose(self, requests: list[DraftRequest]) -> list[TokenTree]:
        return [self.tree] * len(requests)

    def commit(self, request_id: int, accepted_token_ids: np.ndarray, features: None = None) -> None: ...

    def close(self, request_id: int) -> None: ...


BRANCHED = TokenTree.of([4, 5, 6, 7], [-1, -1, 1, 2])  # 4 | 5 -> 6 -> 7


def test_the_accepted_path_is_found_among_branches() -> None:
    recorder = Recorder(FixedDrafter(BRANCHED))
    _step(recorder, request_id=3, token_ids=[1, 2], gained=[5, 6, 9])
    (draft,) = recorder.drafts
    assert (draft.root_token_id, draft.accepted_nodes, draft.next_token_id) == (2, [1, 2], 9)


def test_a_refused_draft_has_an_empty_path() -> None:
    recorder = Recorder(FixedDrafter(BRANCHED))
    _step(recorder, request_id=0, token_ids=[1], gained=[8])
    assert recorder.drafts[0].accepted_nodes == []


def test_the_most_telling_draft_has_branches_then_the_longest_path() -> None:
    recorder = Recorder(FixedDrafter(BRANCHED))
    assert recorder.most_telling() is None
    _step(recorder, request_id=0, token_ids=[1], gained=[8])
    _step(recorder, request_id=0, token_ids=[1], gained=[5, 6, 7, 8])
    recorder._drafter = FixedDrafter(TokenTree.chain([1, 2, 3, 4, 5]))
    _step(recorder, request_id=0, token_ids=[1], gained=[1, 2, 3, 4, 5, 6])
    assert recorder.most_telling() is recorder.drafts[1]


def test_it_proposes_what_its_drafter_proposes() -> None:
    request = DraftRequest(0, np.array([1, 2, 3, 1, 2], np.int32), 4)
    (mine,), (theirs,) = Recorder(NGramDrafter()).propose([request]), NGramDrafter().propose([request])
    assert mine.token_ids.tolist() == theirs.token_ids.tolist() != []


def _step(recorder: Recorder, *, request_id: int, token_ids: list[int], gained: list[int]) -> None:
    recorder.propose([DraftRequest(request_id, np.array(token_ids, np.int32), 8)])
    recorder.commit(request_id, np.array(gained, np.int32))
    recorder.close(request_id)
