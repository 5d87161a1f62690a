"""Outputs of any program for pictures, saved so that a student learns from them. See docs/distillation.md.

python examples/write_teacher_outputs.py DATA FOLDER [MODEL]

DATA is a data file or a folder of pictures, MODEL the student's file. In a plan, of a run of the same size:
{name: distill, augment: false, distill: {teachers: [{weights: FOLDER, output: {kl: 1.0}}]}}
"""

import sys
from pathlib import Path

import torch

import mtyolo
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.split import load_split
from mtyolo.distill.writing import save_outputs

SIZE = 320  # pixels: --imgsz of the training
data, folder, model = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "yolov5n.yaml"
student = mtyolo.build(model, data=data)  # it is not run: its strides, anchors and classes are what counts
pictures = Dataset(load_split(data, "train"), SIZE)  # letterboxed, as training without augmentation sees them


def outputs_of(images: torch.Tensor) -> mtyolo.Outputs:
    """Yours goes here: for each stride a map of all anchors' x, y, w, h, objectness and classes, before the sigmoid."""
    start, end = (len(images), student.anchors.shape[1]), 5 + len(student.names)
    return mtyolo.Outputs({}, {}, [torch.zeros(*start, SIZE // s, SIZE // s, end) for s in student.strides])


for batch in make_loader(pictures, 8, shuffle=False, workers=0, seed=0):
    save_outputs(folder, student, batch.images, outputs_of(batch.images))
print(f"{len(pictures)} pictures: {folder}")
