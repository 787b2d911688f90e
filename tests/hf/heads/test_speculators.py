"""Heads give the logits that the modules of PyPI's `speculators` give, step by step of its training-time test.

speculators asks for other versions of torch and transformers than the rest of the suite, so it is no dependency of it:
where it is not installed, these tests are skipped.
"""

import pytest
import torch
from tests.hf.heads.checkpoints import CONFIGS, weights, write
from tests.hf.tiny import tiny_model

from infercore.hf import EagleDrafter
from infercore.hf.heads.train.lesson import StepwiseAttention

eagle3 = pytest.importorskip("speculators.models.eagle3", reason="speculators is not installed")
STEPS, LENGTH = 4, 24
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of its code


def reference(flavour, embedding):
    """Its model on our random weights; `lm_head`'s outputs are collected."""
    content = dict(CONFIGS[flavour])
    content.pop("speculators_config")
    content.setdefault("eagle_aux_hidden_state_layer_ids", None)
    config = eagle3.Eagle3SpeculatorConfig(**content)
    config.transformer_layer_config._attn_implementation = "eager"
    model = eagle3.Eagle3DraftModel(config).eval()
    missing, unexpected = model.load_state_dict({**weights(flavour), "embed_tokens.weight": embedding}, strict=False)
    assert not unexpected
    assert all(name.startswith("verifier_") for name in missing), missing
    rows = []
    model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output[0]))
    return model, rows


@pytest.mark.parametrize("flavour", [name for name in CONFIGS if name.startswith("speculators")])
def test_logits_are_those_of_speculators(flavour, tmp_path):
    target = tiny_model("llama")
    head = EagleDrafter.from_pretrained(write(flavour, tmp_path), target).head
    model, theirs = reference(flavour, target.get_input_embeddings().weight.detach())
    features = torch.randn(1, LENGTH, head.feature_size, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(3, 190, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model(features, tokens, document_ids=torch.zeros(1, LENGTH, dtype=torch.int64), ttt_steps=STEPS)
        attention, hidden = StepwiseAttention(), head.project(features)
        for step in range(STEPS):
            attention.step = step
            ids = torch.cat([tokens[:, step:], torch.zeros(1, step, dtype=torch.int64)], 1)
            hidden = head(ids, hidden, torch.arange(LENGTH)[None] + step, attention)
            difference = (head.logits(hidden)[0] - theirs[step]).abs().max()
            assert difference <= 1e-5 * theirs[step].abs().max()
    assert len(theirs) == STEPS
