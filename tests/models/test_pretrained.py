"""Pretrained weights land where they belong; files of another net, and files with code in them, are refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from angio_ray.models import NETS
from angio_ray.models.pretrained import PretrainedError, load_pretrained


def test_kinetics_weights_in_pytorchvideos_form_fill_all_but_the_head(tmp_path: Path) -> None:
    """The hub's own builder (13 frames, 400 classes) makes the checkpoint, in the hub file's nest."""
    from pytorchvideo.models.hub.x3d import x3d_s

    torch.manual_seed(3)
    source = x3d_s(pretrained=False)
    torch.save({"model_state": source.state_dict()}, tmp_path / "X3D_S.pyth")
    net = NETS["x3d_s"].build()
    head = net.blocks[5].proj.weight.detach().clone()
    assert load_pretrained("x3d_s", net, tmp_path / "X3D_S.pyth") == ["blocks.5.proj.bias", "blocks.5.proj.weight"]
    for key, value in net.state_dict().items():
        expected = head if key == "blocks.5.proj.weight" else source.state_dict()[key]
        if key != "blocks.5.proj.bias":
            torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_what_did_not_match_is_listed_on_both_sides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = NETS["r18_2d"].build().state_dict()
    for name in ("fc.weight", "layer1.0.conv1.weight"):
        tensors[f"other.{name}"] = tensors.pop(name)
    save_file(tensors, tmp_path / "w.safetensors")
    with caplog.at_level("INFO", "angio_ray.models.pretrained"):
        missing = load_pretrained("r18_2d", NETS["r18_2d"].build(), tmp_path / "w.safetensors")
    assert missing == ["fc.weight", "layer1.0.conv1.weight"]
    assert "2 pretrained tensors are not used by r18_2d: other.fc.weight, other.layer1.0.conv1.weight" in caplog.text


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "data parallel"])
def test_imagenet_weights_fill_all_but_the_classifier(tmp_path: Path, prefix: str) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(3)
    source = resnet18().state_dict()
    save_file({prefix + k: v.contiguous() for k, v in source.items()}, tmp_path / "resnet18.safetensors")
    net = NETS["r18_2d"].build()
    assert load_pretrained("r18_2d", net, tmp_path / "resnet18.safetensors") == ["fc.bias", "fc.weight"]
    torch.testing.assert_close(net.state_dict()["layer4.1.conv2.weight"], source["layer4.1.conv2.weight"])


def test_a_grey_first_kernel_gives_the_same_features_of_grey_frames(tmp_path: Path) -> None:
    """MedicalNet's ResNets take one channel and have neither classifier nor the shortcut's bias."""
    from monai.networks.nets import resnet18

    torch.manual_seed(3)
    source = resnet18(spatial_dims=3, n_input_channels=1, num_classes=2, feed_forward=False, shortcut_type="A")
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "resnet_18.pth")
    net = NETS["r18_3d"].build()
    unmatched = load_pretrained("r18_3d", net, tmp_path / "resnet_18.pth")
    assert {k.partition(".")[0] for k in unmatched} == {"fc", "layer2", "layer3", "layer4"}
    assert all("downsample" in k or k.startswith("fc.") for k in unmatched)
    grey = torch.randn(1, 1, 4, 32, 32)
    torch.testing.assert_close(net.conv1(grey.expand(-1, 3, -1, -1, -1)), source.conv1(grey), atol=1e-4, rtol=1e-4)


def test_weights_of_another_net_are_refused_and_change_nothing(tmp_path: Path) -> None:
    torch.save(NETS["x3d_s"].build().state_dict(), tmp_path / "x3d.pth")
    net = NETS["r18_2d"].build()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(PretrainedError, match="of another net"):
        load_pretrained("r18_2d", net, tmp_path / "x3d.pth")
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


class Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("save", [lambda o, p: torch.save(o, p), lambda o, p: p.write_bytes(pickle.dumps(o))],
                         ids=["torch.save", "pickle"])
def test_code_in_a_weight_file_is_not_run(tmp_path: Path, save: Any) -> None:
    save({"model_state": Trap(tmp_path / "run")}, tmp_path / "weights.pth")
    with pytest.raises(PretrainedError, match="without running code"):
        load_pretrained("x3d_s", NETS["x3d_s"].build(), tmp_path / "weights.pth")
    assert not (tmp_path / "run").exists()


def test_neither_file_nor_download_and_absent_or_empty_files_are_one_line(tmp_path: Path) -> None:
    net = NETS["x3d_s"].build()
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    for path, message in [(None, "local file"), (tmp_path / "absent.pth", "no file"), (tmp_path / "empty.pth", "no named")]:
        with pytest.raises(PretrainedError, match=message) as caught:
            load_pretrained("x3d_s", net, path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["inception_lstm", "inception_v3"])
def test_an_inception_that_looks_at_each_frame_takes_torchvisions_weights(name: str, tmp_path: Path) -> None:
    from torchvision.models import inception_v3

    source = inception_v3(weights=None, init_weights=False).state_dict()
    torch.save(source, tmp_path / "inception_v3.pth")
    net = NETS[name].build()
    missing = load_pretrained(name, net, tmp_path / "inception_v3.pth")
    assert missing
    assert not [name for name in missing if name.startswith("features.")], "only what comes after it begins at random"
    first = "Conv2d_1a_3x3.conv.weight"
    assert torch.equal(net.state_dict()[f"features.net.{first}"], source[first])
