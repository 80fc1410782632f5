"""Initial weights for training, from a local file or a hub: ImageNet (torchvision), Kinetics (pytorchvideo), MedicalNet (MONAI).

Files may be pickles (.pyth, .pth): they are read with `weights_only=True` and only here, on the way into training; what scores
is a bundle, which never is one. Knows no task: heads of other classes are left as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

_TORCHVISION = {"r18_2d": "resnet18", "r152_2d": "resnet152"}
_MEDICALNET_DEPTH = {"r18_3d": 18, "r152_3d": 152}
_NESTS = ("model_state", "state_dict", "model_state_dict", "model")
"""Where checkpoints keep their tensors: pytorchvideo and SlowFast, MedicalNet and kenshohara's 3D ResNets, others."""


class PretrainedError(ValueError):
    """Weights that cannot be read or are of another net; the message is one line."""


def load_pretrained(name: str, net: nn.Module, path: str | Path | None = None, *, download: bool = False) -> list[str]:
    """Put pretrained weights into `net`, where names and shapes agree.

    Names lose the prefix of DataParallel. A first kernel for one grey channel (MedicalNet) is spread over `net`'s three, one
    third each, so that grey frames give the same features.

    Parameters
    ----------
    name
        The net's name in NETS: says which hub to ask.
    path
        A local file: .safetensors, or a torch file such as pytorchvideo's X3D_S.pyth or torchvision's resnet18-*.pth.
    download
        Without `path`: fetch from the library's own hub (torchvision, pytorchvideo, MedicalNet through MONAI).

    Returns
    -------
    list of str
        Names of `net`'s tensors that got no value and keep their initial one (the head, as a rule), sorted.

    Raises
    ------
    PretrainedError
        Neither file nor permission to download, an unreadable file, or fewer than half of the net's tensors in it.
    """
    if path is not None:
        found = _read(Path(path))
    elif download:
        found = _download(name)
    else:
        raise PretrainedError(f"no weights for {name}: name a local file, or allow the download")
    wanted = net.state_dict()
    matched, unused = {}, []
    # nets that read frames in order have a net for frames within them
    within = "features.net." if any(key.startswith("features.net.") for key in wanted) else ""
    for key, tensor in found.items():
        key = within + key.removeprefix("module.").removeprefix(within)
        fitted = _fit(tensor, wanted.get(key))
        if fitted is None:
            unused.append(key)
        else:
            matched[key] = fitted
    if 2 * len(matched) < len(wanted):
        raise PretrainedError(f"only {len(matched)} of the {len(wanted)} tensors of {name} are in the weights: of another net")
    net.load_state_dict(matched, strict=False)
    if unused:
        log.info("%d pretrained tensors are not used by %s: %s", len(unused), name, ", ".join(sorted(unused)))
    # Old files lack the batch counters; they play no part where momentum is set, as in all of these nets.
    return sorted(k for k in wanted.keys() - matched.keys() if not k.endswith("num_batches_tracked"))


def _fit(tensor: Tensor, wanted: Tensor | None) -> Tensor | None:
    """`tensor` in the shape and kind wanted; None when it does not go."""
    if wanted is None or tensor.is_floating_point() != wanted.is_floating_point():
        return None
    if tensor.shape == wanted.shape:
        return tensor
    grey = (wanted.shape[0], 1, *wanted.shape[2:]) if wanted.ndim > 3 and wanted.shape[1] == 3 else None
    if tensor.shape == grey:
        return tensor.expand_as(wanted) / 3
    return None


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a local file."""
    if not path.is_file():
        raise PretrainedError(f"no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, SafetensorError, zip and tar errors: all the same to the user
        raise PretrainedError(f"{path} cannot be read as weights without running code in it ({type(error).__name__})") from error
    return _tensors(content, str(path))


def _tensors(content: Any, source: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, wherever it keeps them."""
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
            break
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise PretrainedError(f"{source} holds no named tensors")
    return tensors


def _download(name: str) -> dict[str, Tensor]:
    """The tensors from the hub of the library that the net comes from."""
    try:
        if name in _TORCHVISION:
            from torchvision.models import get_model_weights

            weights = get_model_weights(_TORCHVISION[name])["DEFAULT"]
            return _tensors(weights.get_state_dict(progress=False, check_hash=True, weights_only=True), weights.url)
        if name == "x3d_s":
            from pytorchvideo.models.hub.x3d import checkpoint_paths

            url = checkpoint_paths["x3d_s"]
            return _tensors(torch.hub.load_state_dict_from_url(url, progress=False, map_location="cpu", weights_only=True), url)
        if name in _MEDICALNET_DEPTH:
            from monai.networks.nets.resnet import get_pretrained_resnet_medicalnet

            return _tensors(get_pretrained_resnet_medicalnet(_MEDICALNET_DEPTH[name]), "MedicalNet")
    except PretrainedError:
        raise
    except Exception as error:  # no network, a proxy, a moved file, huggingface_hub absent
        raise PretrainedError(f"the weights of {name} cannot be downloaded ({type(error).__name__})") from error
    raise PretrainedError(f"no hub has weights for {name}")
