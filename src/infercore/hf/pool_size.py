"""How many pages a KV pool gets when nobody says."""

import torch

_CPU_TOKENS = 16_384
_GPU_FRACTION = 0.8


def default_num_pages(bytes_per_page: int, page_size: int, device: torch.device) -> int:
    """Pages for 16k tokens on a CPU, for 80% of the free memory on a GPU; the reserved page is on top."""
    if device.type != "cuda":
        return _CPU_TOKENS // page_size + 1
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return max(2, int(free_bytes * _GPU_FRACTION) // max(1, bytes_per_page)) + 1
