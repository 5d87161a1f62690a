"""The detection loss of the official YOLOv5n on four photos, computed by the official code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mtyolo.checkpoint import load
from mtyolo.config.training import LossGains
from mtyolo.graph.transfer import official_name
from mtyolo.structures import Targets
from mtyolo.tasks import compute_losses
from mtyolo.tasks.anchors import assign
from mtyolo.tasks.detect.loss import detect_loss


def test_losses_gradients_and_matches_are_the_official_ones(test_data: Path) -> None:
    reference = np.load(test_data / "reference" / "yolov5n_loss_reference.npz")
    model = load(test_data / "weights" / "yolov5n.pt").eval()
    model.requires_grad_(True)
    labels = torch.from_numpy(reference["targets"])
    targets = Targets(labels[:, 0].long(), labels[:, 1].long(), labels[:, 2:])
    outputs = model(torch.from_numpy(reference["images"]).float() / 255)

    shapes = [(level.shape[2], level.shape[3]) for level in outputs.detect]
    assignment = assign(model.anchors, model.strides, shapes, targets)
    assert [len(matches.image) for matches in assignment.levels] == reference["matches"].tolist()

    means = detect_loss(outputs.detect, assignment, targets, model.anchors, model.strides, LossGains())
    for component, name in (("box", "lbox"), ("objectness", "lobj"), ("class", "lcls")):
        assert means[f"detect.{component}"].item() == pytest.approx(float(reference[name]), abs=1e-6)

    losses = compute_losses(("detect",), outputs, targets, model.anchors, model.strides, LossGains())
    total = torch.stack(list(losses["detect"].values())).sum()
    assert total.item() == pytest.approx(float(reference["total"][0]), abs=1e-5)

    total.backward()
    head = model.graph.spec.head.number
    gradients = {official_name(name, head): tensor.grad for name, tensor in model.named_parameters()}
    for name, norm in zip(reference["grad_names"], reference["grad_norms"], strict=True):
        gradient = gradients[str(name)]
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name
