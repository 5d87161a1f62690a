"""All tasks' losses on one assignment: what is not labelled, what is empty, who multiplies by the batch size."""

from __future__ import annotations

import pytest
import torch
from scene import IMAGES, Scene

from mtyolo.config.training import LossGains
from mtyolo.structures import Targets
from mtyolo.tasks import TASKS, compute_losses
from mtyolo.tasks.anchors import assign
from mtyolo.tasks.detect.loss import detect_loss


def losses_of(scene: Scene, tasks: tuple[str, ...] = tuple(TASKS)) -> dict[str, dict[str, torch.Tensor]]:
    return compute_losses(tasks, scene.outputs, scene.targets, scene.anchors, scene.strides, LossGains())


def total(losses: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([value for components in losses.values() for value in components.values()]).sum()


def without_image(scene: Scene, image: int) -> Scene:
    """The same scene with one image, its objects and its outputs taken out."""
    keep = torch.arange(IMAGES) != image
    targets, outputs = scene.targets, scene.outputs
    own = targets.image_index != image
    number = keep.cumsum(0) - 1
    smaller = Targets(
        number[targets.image_index[own]],
        *(part[own] for part in (targets.classes, targets.boxes_cxcywh, targets.masks, targets.keypoints)),
        labelled={task: flags[keep] for task, flags in targets.labelled.items()},
    )
    segment = type(outputs.segment)(
        [level[keep] for level in outputs.segment.coefficients], outputs.segment.prototypes[keep]
    )
    return scene._replace(
        targets=smaller,
        outputs=outputs._replace(
            detect=[level[keep] for level in outputs.detect],
            segment=segment,
            keypoint=type(outputs.keypoint)(
                [level[keep] for level in outputs.keypoint.points], outputs.keypoint.heatmaps[keep]
            ),
        ),
    )


def test_each_task_names_its_components(scene: Scene) -> None:
    losses = losses_of(scene)
    assert {name: list(components) for name, components in losses.items()} == {
        "detect": ["detect.box", "detect.objectness", "detect.class"],
        "segment": ["segment.mask"],
        "keypoint": ["keypoint.location", "keypoint.visibility", "keypoint.heatmap"],
    }
    for components in losses.values():
        assert all(value.shape == () and value > 0 for value in components.values())


def test_only_the_named_tasks_are_computed(scene: Scene) -> None:
    assert list(losses_of(scene, ("detect", "keypoint"))) == ["detect", "keypoint"]


def test_the_batch_size_is_multiplied_once(scene: Scene) -> None:
    assignment = assign(scene.anchors, scene.strides, scene.shapes, scene.targets)
    means = detect_loss(scene.outputs.detect, assignment, scene.targets, scene.anchors, scene.strides, LossGains())
    for name, value in losses_of(scene)["detect"].items():
        torch.testing.assert_close(value, means[name] * IMAGES)


@pytest.mark.parametrize("task", list(TASKS))
def test_unlabelled_image_contributes_no_loss_and_no_gradient(scene: Scene, task: str) -> None:
    image = int(scene.targets.image_index.bincount().argmax())
    scene.targets.labelled[task][image] = False
    losses = losses_of(scene, (task,))
    # As if the image were not there, but for the batch size.
    expected = losses_of(without_image(scene, image), (task,))
    torch.testing.assert_close(total(losses), total(expected) * IMAGES / (IMAGES - 1))
    gradients = torch.autograd.grad(total(losses), scene.leaves(), allow_unused=True)
    seen = [gradient for gradient in gradients if gradient is not None]
    assert all(not gradient[image].any() for gradient in seen)
    assert any(gradient.any() for gradient in seen)


@pytest.mark.parametrize("task", list(TASKS))
def test_no_image_labelled_gives_zero_loss_and_zero_gradients(scene: Scene, task: str) -> None:
    scene.targets.labelled[task][:] = False
    loss = total(losses_of(scene, (task,)))
    assert loss.item() == 0
    gradients = [g for g in torch.autograd.grad(loss, scene.leaves(), allow_unused=True) if g is not None]
    assert len(gradients) >= 3
    assert all(not gradient.any() for gradient in gradients)


def test_a_batch_without_objects_has_finite_losses_and_a_gradient_for_every_output(empty_scene: Scene) -> None:
    losses = losses_of(empty_scene)
    gradients = torch.autograd.grad(total(losses), empty_scene.leaves())
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert losses["detect"]["detect.objectness"] > 0
    assert sum(losses["segment"].values()) == sum(losses["keypoint"].values()) == 0


def test_labels_without_masks_and_keypoints_teach_detection_only(scene: Scene) -> None:
    scene.targets.masks = scene.targets.keypoints = None
    losses = losses_of(scene)
    assert total({"detect": losses["detect"]}) > 0
    assert sum(losses["segment"].values()) == sum(losses["keypoint"].values()) == 0


def test_half_precision_outputs_give_the_losses_of_full_precision(scene: Scene) -> None:
    def half(maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return [level.bfloat16() for level in maps]

    outputs = scene.outputs
    halved = outputs._replace(
        detect=half(outputs.detect),
        segment=type(outputs.segment)(half(outputs.segment.coefficients), outputs.segment.prototypes.bfloat16()),
        keypoint=type(outputs.keypoint)(half(outputs.keypoint.points), outputs.keypoint.heatmaps.bfloat16()),
    )
    rounded = total(losses_of(scene._replace(outputs=halved)))
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, total(losses_of(scene)), rtol=2e-2, atol=0)


def test_under_autocast_keypoints_are_still_compared_in_full_precision(scene: Scene) -> None:
    """The loop computes losses inside of it."""
    expected = losses_of(scene, ("keypoint",))["keypoint"]
    with torch.autocast("cpu", torch.bfloat16):
        found = losses_of(scene, ("keypoint",))["keypoint"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=0)


def test_losses_can_be_differentiated_twice(scene: Scene) -> None:
    """GradNorm and gradient similarity differentiate gradients."""
    loss = total(losses_of(scene))
    gradients = torch.autograd.grad(loss, scene.leaves(), create_graph=True)
    twice = torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), scene.leaves())
    assert all(gradient.isfinite().all() for gradient in twice)
