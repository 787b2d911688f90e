"""Compiles every Triton kernel for GPUs this machine need not have. Run by test_compile.py in a process of its own.

python compile_only.py 90 [name ...]      # compute capability, then kernels (all by default)
"""

import os
import sys

os.environ["TRITON_INTERPRET"] = "0"

import importlib

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


def _module(op: str, file: str = "triton"):
    return importlib.import_module(f"infercore.kernels.{op}.{file}")


def compile_kernel(kernel, capability: int, types: dict[str, str], constants: dict, **options):
    """`types` gives pointer types by argument name; other arguments are i32 unless named there."""
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True} | options
    )


def attend(capability: int, *, pool="bf16", k_dim=128, v_dim=128, page_size=16, config=(64, 64, 3, 4),
           split_keys=0, features=(), group=4):  # fmt: skip
    block_m, block_n, stages, warps = config
    overlap = capability >= 90
    shape = {
        "GROUP": group, "V_DIM": v_dim, "BLOCK_M": block_m,
        "HAS_SINKS": "sinks" in features, "HAS_MAGNITUDE": pool != "fp32", "OVERLAP": overlap,
    }  # fmt: skip
    types = {
        "query_ptr": f"*{pool}", "k_pages_ptr": f"*{pool}", "v_pages_ptr": f"*{pool}", "out_ptr": f"*{pool}",
        "sinks_ptr": f"*{pool}", "values_ptr": "*fp32" if pool == "fp32" else "*fp16", "lse_ptr": "*fp32",
        "magnitude_ptr": "*fp32", "position_ids_ptr": "*i64", "items_ptr": "*i32", "rows_ptr": "*i32",
        "block_table_ptr": "*i32", "ancestor_bits_ptr": "*i32", "scale_log2": "fp32", "softcap": "fp32",
    }  # fmt: skip
    constants = shape | {
        "KV_HEADS": 8, "V_PAD": max(16, triton.next_power_of_2(v_dim)),
        "K_DIM": k_dim, "K_PAD": max(16, triton.next_power_of_2(k_dim)), "PAGE_SIZE": page_size,
        "STAGES": stages, "BLOCK_N": block_n, "ITEM_FIELDS": 16, "SPLIT_KEYS": split_keys, "OWN_TAIL": 16,
        "HAS_WINDOW": "window" in features, "HAS_SOFTCAP": "softcap" in features,
        "HAS_BITS": "no bits" not in features,
        "SMALL_POOL": "big pool" not in features,
        "PRECISION": "ieee" if pool == "fp32" else "tf32",
    }  # fmt: skip
    pdl = {"launch_pdl": True} if overlap else {}
    kernel = _module("tree_attention")._attend_kernel
    attended = compile_kernel(kernel, capability, types, constants, num_warps=warps, **pdl)
    constants = shape | {
        "HEADS": 8 * group, "V_BLOCK": 128, "ROW_FIELDS": 8, "UNITS": 4, "SPLITS": 4, "HAS_GROUPS": "groups" in features
    }  # fmt: skip
    kernel = _module("tree_attention", "triton_merge")._merge_kernel
    return attended, compile_kernel(kernel, capability, types, constants, num_warps=1, **pdl)


def plan(capability: int):
    types = dict.fromkeys(
        ("row_starts_ptr", "context_lens_ptr", "num_causal_rows_ptr", "group_starts_ptr", "shared_lens_ptr",
         "items_ptr", "rows_ptr", "scratch_ptr"), "*i32",
    )  # fmt: skip
    shape = {"GROUP": 4, "BLOCK_M": 64, "BLOCK_N": 64, "SHARED_STEP": 128, "ITEM_FIELDS": 16, "ROW_FIELDS": 8}
    kernel = _module("tree_attention", "triton_plan")._plan_kernel
    return tuple(
        compile_kernel(kernel, capability, types, shape | more, num_warps=8)
        for more in (
            {"UNITS": 16, "STEPS": 5, "SPLIT_KEYS": 0},
            {"UNITS": 1024, "STEPS": 11, "SPLIT_KEYS": 1024},
        )
    )


def write_kv(capability: int):
    types = dict.fromkeys(("k_ptr", "v_ptr", "k_pages_ptr", "v_pages_ptr"), "*bf16") | {"slot_mapping_ptr": "*i64"}
    constants = {"HEADS": 8, "K_DIM": 128, "V_DIM": 96, "BLOCK": 1024}
    return (compile_kernel(_module("write_kv")._write_kv_kernel, capability, types, constants),)


def move_kv(capability: int):
    types = {"src_ptr": "*bf16", "dst_ptr": "*bf16", "src_slots_ptr": "*i64", "dst_slots_ptr": "*i64"}
    kernel = _module("move_kv")._copy_slots_kernel
    layers = _module("move_kv", "triton_layers")
    together, few = layers._move_slots_kernel, layers._move_few_kernel
    return (
        *(
            compile_kernel(kernel, capability, types, {"WIDTH": 1024, "BLOCK": 1024, "GATHER": g})
            for g in (True, False)
        ),
        compile_kernel(together, capability, {"table_ptr": "*i64", "moves_ptr": "*i64"}, {"BLOCK": 256}, num_stages=1),
        compile_kernel(few, capability, {"table_ptr": "*i64"}, {"BLOCK": 256}, num_stages=1),
    )


def pack_pages(capability: int):
    kernel = _module("pack_pages")._copy_pages_kernel
    return tuple(
        compile_kernel(
            kernel, capability, {"table_ptr": "*i64", "page_ids_ptr": "*i64", "blocks_ptr": f"*{word}"},
            {"UNPACK": unpack, "BLOCK": 1024},
        )
        for word, unpack in (("i64", False), ("i64", True), ("i8", True))
    )  # fmt: skip


def token_bitmask(capability: int):
    types = {"logits_ptr": "*fp32", "bitmask_ptr": "*i32"}
    return (compile_kernel(_module("token_bitmask")._apply_token_bitmask_kernel, capability, types, {"BLOCK": 4096}),)


def verify_tree(capability: int):
    types = {
        "token_ids_ptr": "*i64", "parents_ptr": "*i32", "target_token_ids_ptr": "*i64", "tree_starts_ptr": "*i32",
        "num_accepted_ptr": "*i32", "paths_ptr": "*i32", "next_token_ids_ptr": "*i64",
    }  # fmt: skip
    return (compile_kernel(_module("verify_tree")._verify_tree_kernel, capability, types, {"BLOCK": 128}),)


def linear_group(capability: int):
    types = dict.fromkeys(("x_ptr", "w0_ptr", "w1_ptr", "w2_ptr", "y0_ptr", "y1_ptr", "y2_ptr"), "*bf16")
    kernel, configs = _module("linear_group")._linear_group_kernel, _module("linear_group")._CONFIGS
    return tuple(
        compile_kernel(
            kernel, capability, types, {"ROWS": rows, "OUTPUTS": outputs, "STEP": step, "IS_WHOLE": rows == 16},
            num_stages=stages, num_warps=warps,
        )
        for rows, (outputs, step, stages, warps) in configs.items()
    )  # fmt: skip


def expand_frontier(capability: int):
    types = {
        "logits_ptr": "*bf16", "values_ptr": "*fp32", "columns_ptr": "*i32", "sums_ptr": "*fp32",
        "node_scores_ptr": "*fp32", "id_offsets_ptr": "*i64", "token_ids_ptr": "*i64", "scores_ptr": "*fp32",
        "frontier_ptr": "*i64",
    }  # fmt: skip
    module, kernels = _module("expand_frontier"), []
    for vocab, nodes in ((10_240, 6), (131_072, 1)):
        block = 1024 if vocab <= module._SMALL_VOCAB else 4096
        blocks = triton.cdiv(vocab, block)
        shape = {"NODES": nodes, "BRANCHING": 6, "WIDTH": 6, "HAS_OFFSETS": nodes == 6}
        pads = {"NODES_PAD": triton.next_power_of_2(nodes), "BLOCKS_PAD": triton.next_power_of_2(blocks),
                "CANDIDATES_PAD": triton.next_power_of_2(6 * blocks), "CHILDREN_PAD": 8}  # fmt: skip
        some = {"BRANCHING": 6, "BLOCK": block}
        kernels += [
            compile_kernel(module._best_of_blocks_kernel, capability, types, some, num_warps=block // 1024),
            compile_kernel(module._join_blocks_kernel, capability, types, shape | pads, num_warps=4),
        ]
    return tuple(kernels)


KERNELS = {
    "expand_frontier": expand_frontier,
    "linear_group": linear_group,
    "verify_tree": verify_tree,
    "write_kv": write_kv,
    "move_kv": move_kv,
    "pack_pages": pack_pages,
    "token_bitmask": token_bitmask,
    "plan": plan,
    "decode": lambda c: attend(c, config=(16, 64, 4, 4), features=("no bits",)),
    "tree": lambda c: attend(c, config=(64, 64, 3, 4), features=("groups",)),
    "prefill": lambda c: attend(c, config=(128, 64, 3, 8), features=("no bits",)),
    "everything, head size 80 and 96": lambda c: attend(
        c, pool="fp16", k_dim=80, v_dim=96, page_size=1, features=("window", "softcap", "sinks"), group=3
    ),
    "head size 256, float32": lambda c: attend(c, pool="fp32", k_dim=256, v_dim=256, config=(64, 32, 1, 4)),
    "batch_invariant": lambda c: attend(c, config=(16, 64, 3, 4), split_keys=1024, page_size=32),
}


def main() -> None:
    capability, names = int(sys.argv[1]), sys.argv[2:] or list(KERNELS)
    for name in names:
        for kernel in KERNELS[name](capability):
            text = kernel.asm["ptx"]
            assert f".target sm_{capability}" in text, text[:300]
            spills = getattr(kernel, "n_spills", None)
            print(f"sm_{capability} {name}: {kernel.metadata.name}, {kernel.metadata.shared} shared bytes, "
                  f"{text.count('mma.sync') + text.count('wgmma.mma_async')} mma, spills {spills}")  # fmt: skip


if __name__ == "__main__":
    main()
