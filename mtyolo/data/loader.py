"""Batches of a data set: their order, and how samples become tensors."""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from mtyolo.data.dataset import Dataset, Pick
from mtyolo.data.records import TASKS
from mtyolo.data.transforms import Sample
from mtyolo.memory import give_back
from mtyolo.structures import Batch, Targets


class Loader(DataLoader[Batch]):
    """Its processes begin without the memory that this one's last steps have freed: gigabytes, for nothing."""

    def __iter__(self) -> Any:
        if self.num_workers:
            give_back()
        return super().__iter__()


def make_loader(
    dataset: Dataset,
    batch: int,
    *,
    shuffle: bool,
    workers: int,
    seed: int,
) -> DataLoader[Batch]:
    """Batches of a data set. `dataset.set_epoch(e)` before each pass; the order depends only on (seed, e)."""
    batches = EpochBatches(dataset, batch, shuffle=shuffle, seed=seed)
    return Loader(
        dataset,  # type: ignore[arg-type]  # torch names the loader's type after samples, not batches
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        worker_init_fn=_start_worker,
        multiprocessing_context=_start_method(workers),
    )


def _start_method(workers: int) -> str | None:
    """None for Python's default. A server that forks workers, the default on Linux from 3.14 on, ends when SIGTERM goes
    to a whole group of processes, and its workers count as lost with it; new processes take as long to start."""
    return "spawn" if workers and multiprocessing.get_start_method() == "forkserver" else None


def _start_worker(worker: int) -> None:
    """Workers are the parallelism; OpenCV's own threads would only compete with them. Ctrl-C always goes to a whole
    group of processes, SIGTERM often: training has to save then, for which its workers stay; it ends them itself."""
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class EpochBatches(Sampler[list[Pick]]):
    """Batches of (epoch, index).

    Where images are labelled for different tasks and the order is shuffled, every batch holds at least one image for
    each task as far as its size allows. Images of a rare task are repeated for that, in place of others, so that the
    number of batches stays the same.
    """

    def __init__(self, dataset: Dataset, batch_size: int, *, shuffle: bool, seed: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[list[Pick]]:
        epoch = self.dataset.epoch
        for indices in self._batches(epoch):
            yield [(epoch, index) for index in indices]

    def _batches(self, epoch: int) -> list[list[int]]:
        total, size = len(self.dataset), self.batch_size
        order = np.arange(total)
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(total)
        sizes = [min(size, total - start) for start in range(0, len(self) * size, size)]
        labelled = [record.labels.labelled for record in self.dataset.records]
        if self.shuffle and len(set(labelled)) > 1:
            return _with_every_task([int(index) for index in order], sizes, labelled)
        return [order[number * size : (number + 1) * size].tolist() for number in range(len(sizes))]


def _with_every_task(order: list[int], sizes: Sequence[int], labelled: Sequence[frozenset[str]]) -> list[list[int]]:
    """Fill batches from `order`, each first with an image for every task, the rarest task first."""
    having = {task: [index for index in order if task in labelled[index]] for task in TASKS}
    tasks = sorted((task for task in TASKS if having[task]), key=lambda task: len(having[task]))
    fresh = {task: iter(having[task]) for task in tasks}
    again = {task: _cycle(having[task]) for task in tasks}
    rest, used = iter(order), set[int]()
    batches = []
    for size in sizes:
        chosen: list[int] = []
        for task in tasks:
            if len(chosen) < size and not any(task in labelled[index] for index in chosen):
                index = next((index for index in fresh[task] if index not in used), None)
                chosen.append(next(again[task]) if index is None else index)
                used.add(chosen[-1])
        while len(chosen) < size:
            # Repeats leave images over, so the order does not run out before the batches do.
            chosen.append(next(index for index in rest if index not in used))
            used.add(chosen[-1])
        batches.append(chosen)
    return batches


def _cycle(indices: Sequence[int]) -> Iterator[int]:
    while True:
        yield from indices


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples into one batch. Images come in channels-last memory, which convolutions on CPU and GPU prefer."""
    counts = torch.tensor([len(sample.classes) for sample in samples])
    size = samples[0].image.shape[0]
    boxes = torch.from_numpy(np.concatenate([sample.boxes_xyxy for sample in samples])) / size
    keypoints = _joined([sample.keypoints for sample in samples])
    if keypoints is not None:
        keypoints[..., :2] /= size
    targets = Targets(
        image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        classes=torch.from_numpy(np.concatenate([sample.classes for sample in samples])),
        boxes_cxcywh=torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1),
        masks=_joined([sample.masks for sample in samples]),
        keypoints=keypoints,
        labelled={task: torch.tensor([task in sample.labelled for sample in samples]) for task in TASKS},
    )
    return Batch(
        targets=targets,
        indices=torch.tensor([sample.index for sample in samples]),
        letterboxes=[sample.letterbox for sample in samples],
        images=torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2),
        keys=[sample.key for sample in samples],
    )


def _joined(arrays: Sequence[np.ndarray | None]) -> Tensor | None:
    present = [array for array in arrays if array is not None]
    return torch.from_numpy(np.concatenate(present)) if present else None
