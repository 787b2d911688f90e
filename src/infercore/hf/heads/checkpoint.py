"""A draft head's files: `config.json` and safetensors, under the names found in the wild, made uniform.

Names: the authors' `midlayer.*` is `layers.0.*`; speculators' `fusion_fc.*` and `transformer.*` of EAGLE-1 are `fc.*`
and `layers.0.*`; a leading `model.` or `module.` goes. Weights may be stored in 8 bits, as `X.weight` (int8 or float8)
with one scale a row in `X.weight_scale`; they are widened as they are read.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from infercore.errors import CheckpointError

_PREFIXES = ("module.", "model.")
_RENAMED = {"midlayer.": "layers.0.", "fusion_fc.": "fc.", "transformer.": "layers.0.", "medusa_head.": ""}
_FLOAT8 = {torch.float8_e4m3fn, torch.float8_e5m2}


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` as it stands.

    Raises: CheckpointError if there is none, or no JSON object in it.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json; expected a folder with config.json and *.safetensors")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def read_tensors(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the folder's safetensors files, names made uniform, floating ones in `dtype`.

    Raises: CheckpointError if there is no such file, one is damaged, or two tensors end up with one name.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        found = f"only {', '.join(others)}, which are pickles and not opened" if others else "no weights"
        raise CheckpointError(f"{folder} has {found}; expected *.safetensors")
    raw: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    uniform = _uniform(name)
                    if uniform in raw:
                        raise CheckpointError(f"{path} holds {name}, but {uniform} was read already")
                    raw[uniform] = file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is no whole safetensors file: {error}") from error
    return _widened(raw, dtype)


def int8_rows(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8 with one scale a row, in the form that `read_tensors` widens; the rest as it is."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim == 2 and name.endswith(".weight"):
            scale = tensor.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            stored[name] = (tensor.float() / scale).round().to(torch.int8)
            stored[f"{name}_scale"] = scale
        else:
            stored[name] = tensor
    return stored


def load_exactly(module: torch.nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Put `tensors` into `module`, every one and nothing else.

    Raises: CheckpointError naming what is missing, foreign or of another shape; `module` is unchanged then.
    """
    own = module.state_dict()
    complaints = []
    if missing := sorted(own.keys() - tensors.keys()):
        complaints.append(f"lacks {', '.join(missing)}")
    if foreign := sorted(tensors.keys() - own.keys()):
        complaints.append(f"has {', '.join(foreign)}, which {what} has no place for")
    complaints += [
        f"has {name} of shape {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if tensors[name].shape != own[name].shape
    ]
    if complaints:
        raise CheckpointError(f"the checkpoint of {what} " + "; it ".join(complaints))
    module.load_state_dict(tensors)


def _uniform(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    for old, new in _RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _widened(raw: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        if name.endswith(".weight_scale"):
            continue
        scale = raw.get(f"{name}_scale")
        if scale is not None:
            wide = tensor.float() * scale.float().reshape(-1, *[1] * (tensor.ndim - 1))
        elif tensor.dtype is torch.int8:
            raise CheckpointError(f"{name} is stored as int8 without {name}_scale; expected one scale a row")
        else:
            wide = tensor.float() if tensor.dtype in _FLOAT8 else tensor
        tensors[name] = wide.to(dtype) if wide.is_floating_point() else wide
    return tensors
