"""One picture with what is in it: masks, boxes, points and text, by supervision's annotators.

supervision brings OpenCV and matplotlib, so it is imported when something is drawn. Images are uint8 RGB
[height, width, 3]; small ones are enlarged first, so that lines and letters stay readable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import nms

from mtyolo.structures import Detections

if TYPE_CHECKING:
    import supervision

Picture = NDArray[np.uint8]
Skeleton = Sequence[tuple[int, int]]

# COCO's 17 body points, counted from 0; https://cocodataset.org/#keypoints-eval
COCO_SKELETON: Skeleton = (
    *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
    *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
)
READABLE_SIDE = 640
"""Pixels: pictures whose longer side is shorter are enlarged to it."""
VISIBLE = 0.5
"""Predicted points at least this visible are drawn."""
MASK_OPACITY = 0.4
LIGHT = 150
"""Luma of 255 above which text is black."""
SHORTEST_LABELLED_SIDE = 14
"""Pixels: smaller boxes get no text, which would hide them; their colour tells the class."""
TEXT_PADDING = 2
"""Pixels of colour around a text."""
TEXT_OVERLAP = 0.1
"""IoU of two texts above which only the better detection's is shown."""
SMALL_BODY = 110
"""Pixels: points of objects whose longer side is shorter get thin lines, which leave the object visible."""
EDGE_COLOUR, POINT_COLOUR = "#FFF04D", "#FF2E63"


def draw_detections(
    image: Picture,
    detections: Detections,
    names: Mapping[int, str],
    skeleton: Skeleton | None = None,
    *,
    with_scores: bool = True,
) -> Picture:
    """Boxes with class and score, masks, and keypoints, on a copy that is at least 640 pixels long.

    detections: in pixels of the image. skeleton: pairs of points to join, counted from 0; COCO's for 17 points.
    """
    factor = max(1.0, READABLE_SIDE / max(image.shape[:2]))
    return annotated(*scaled(image, detections, factor), names, skeleton, with_scores)


def scaled(image: Picture, detections: Detections, factor: float) -> tuple[Picture, Detections]:
    if factor == 1:
        return image, detections
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    keypoints = detections.keypoints
    if keypoints is not None:
        keypoints = keypoints.cpu() * torch.tensor([factor, factor, 1.0])
    moved = replace(
        detections,
        boxes_xyxy=detections.boxes_xyxy * factor,
        masks=None if detections.masks is None else resized_masks(detections.masks, (height, width)),
        keypoints=keypoints,
        size=(height, width),
    )
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)), moved


def resized_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if not len(masks):
        return masks.new_zeros((0, *size), dtype=torch.bool).cpu()
    return interpolate(masks[:, None].float().cpu(), size=size, mode="bilinear", align_corners=False)[:, 0] > 0.5


def annotated(
    image: Picture,
    detections: Detections,
    names: Mapping[int, str],
    skeleton: Skeleton | None,
    with_scores: bool,
) -> Picture:
    """Masks lie under boxes, keypoints over them, text on top."""
    import supervision as sv

    # Annotators draw in OpenCV's channel order.
    scene = np.ascontiguousarray(image[..., ::-1])
    found = _as_supervision(detections)
    line = max(2, round(max(scene.shape[:2]) / 400))
    if found.mask is not None:
        scene = sv.MaskAnnotator(opacity=MASK_OPACITY).annotate(scene, found)
    scene = sv.BoxAnnotator(thickness=line).annotate(scene, found)
    if detections.keypoints is not None:
        scene = _with_keypoints(scene, detections, skeleton, line)
    return np.ascontiguousarray(_with_labels(scene, found, names, with_scores)[..., ::-1])


def _as_supervision(detections: Detections) -> supervision.Detections:
    import supervision as sv

    masks = detections.masks
    return sv.Detections(
        xyxy=detections.boxes_xyxy.cpu().numpy(),
        mask=None if masks is None or not len(masks) else masks.cpu().numpy(),
        confidence=detections.scores.cpu().numpy(),
        class_id=detections.classes.cpu().numpy(),
    )


def _with_keypoints(scene: Picture, detections: Detections, skeleton: Skeleton | None, line: int) -> Picture:
    assert detections.keypoints is not None
    points = detections.keypoints.cpu().numpy()
    if skeleton is None and points.shape[1] == 1 + max(max(edge) for edge in COCO_SKELETON):
        skeleton = COCO_SKELETON
    boxes = detections.boxes_xyxy.cpu().numpy()
    small = np.max(boxes[:, 2:] - boxes[:, :2], axis=1) < SMALL_BODY
    scene = _with_points(scene, points[small], skeleton, max(1, line - 1))
    return _with_points(scene, points[~small], skeleton, line)


def _with_points(scene: Picture, points: NDArray[Any], skeleton: Skeleton | None, line: int) -> Picture:
    import supervision as sv

    if not len(points):
        return scene
    shown = sv.KeyPoints(xy=points[..., :2].astype(np.float32), visible=points[..., 2] >= VISIBLE)
    if skeleton:
        edges = [(start + 1, end + 1) for start, end in skeleton]  # supervision counts points from 1
        joints = sv.EdgeAnnotator(color=sv.Color.from_hex(EDGE_COLOUR), thickness=line, edges=edges)
        scene = joints.annotate(scene, shown)
    return sv.VertexAnnotator(color=sv.Color.from_hex(POINT_COLOUR), radius=line + line // 2).annotate(scene, shown)


def _with_labels(scene: Picture, found: Any, names: Mapping[int, str], with_scores: bool) -> Picture:
    import supervision as sv

    texts = np.array(
        [
            f"{names.get(int(number), number)} {score:.2f}" if with_scores else str(names.get(int(number), number))
            for number, score in zip(found.class_id, found.confidence, strict=True)
        ],
        dtype=object,
    )
    scale = max(0.4, max(scene.shape[:2]) / 1600)
    thickness = max(1, round(1.5 * scale))
    areas = _text_areas(found.xyxy, texts, scale, thickness, scene.shape[:2])
    chosen = _readable(found, areas)
    letters = [
        sv.Color.BLACK if _is_light(colour.as_rgb()) else sv.Color.WHITE for colour in sv.ColorPalette.DEFAULT.colors
    ]
    annotator = sv.LabelAnnotator(
        text_color=sv.ColorPalette(letters),
        text_scale=scale,
        text_thickness=thickness,
        text_padding=TEXT_PADDING,
    )
    # Annotators write above the top left corner of what they are given: of the texts' places, in place of the boxes.
    places = sv.Detections(xyxy=areas[chosen][:, [0, 3, 2, 3]], class_id=found.class_id[chosen])
    return annotator.annotate(scene, places, texts[chosen].tolist())


def _text_areas(
    boxes: NDArray[Any], texts: NDArray[Any], scale: float, thickness: int, size: tuple[int, int]
) -> NDArray[np.float32]:
    """[n, 4]: where texts stand. Above their boxes; inside at the top where the picture ends before; and never beyond
    its sides."""
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX  # supervision's
    letters = [cv2.getTextSize(text, font, scale, thickness)[0] for text in texts]
    width, height = np.array(letters, np.float32).reshape(-1, 2).T + 2 * TEXT_PADDING
    left = np.clip(boxes[:, 0], 0, np.maximum(size[1] - width, 0))
    top = boxes[:, 1] - height
    top = np.where(top < 0, np.maximum(boxes[:, 1], 0), top)
    return np.stack([left, top, left + width, top + height], 1).astype(np.float32)


def _is_light(colour: tuple[int, int, int]) -> bool:
    """Is black easier to read on it than white? Luma of ITU-R BT.601."""
    return float(np.dot(colour, (0.299, 0.587, 0.114))) > LIGHT


def _readable(found: Any, areas: NDArray[np.float32]) -> NDArray[np.int64]:
    """Detections whose text is shown: large enough, and not over the text of a better one."""
    large = np.flatnonzero(np.min(found.xyxy[:, 2:] - found.xyxy[:, :2], axis=1) >= SHORTEST_LABELLED_SIDE)
    scores = torch.as_tensor(found.confidence[large], dtype=torch.float32)
    return large[nms(torch.from_numpy(areas[large]), scores, TEXT_OVERLAP).numpy()]
