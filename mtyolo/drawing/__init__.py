"""Pictures for people: detections, training batches, truth beside prediction."""

from mtyolo.drawing.picture import COCO_SKELETON, draw_detections
from mtyolo.drawing.sheet import draw_batch, draw_comparison, save_image, truths_of

__all__ = ["COCO_SKELETON", "draw_batch", "draw_comparison", "draw_detections", "save_image", "truths_of"]
