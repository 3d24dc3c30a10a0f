"""Holds what one worker of a run has: its place in the mesh, its classes and their real images, and the flow.

A worker owns a slice of the classes: their real images, their synthetic images, their controls. With network replicas
several workers hold the same slice, and the same images of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from condense.condensation.config import RunConfig
from condense.data.normalisation import Normalisation, normalisation_of
from condense.data.slices import load_slice, source_digest
from condense.data.sources import DataSource
from condense.flow.architecture import Flow
from condense.flow.bits import measure
from condense.flow.pinning import open_flow
from condense.synthetic import controls
from condense.workers.context import WorkerContext
from condense.workers.mesh import Mesh, build_mesh, class_slice

REAL_BITS_IMAGES = 500  # real images behind "bits per dim before": their mean is known to about 1 %


@dataclass(frozen=True)
class WorkerShare:
    """One worker's part of a run, and the sums that all workers' parts make together.

    Attributes:
        mesh: of the workers.
        device: the device that computes.
        seed: the run's.
        class_names: of the whole source.
        classes: the labels that this worker owns.
        real: the train images of each of them, uint8 (n_c, C, H, W), on the device.
        normalisation: of the whole train split.
        source_digest: of the whole train split.
        flow: what measures bits; None where no flow fits and no bits are asked for.
    """

    mesh: Mesh
    device: torch.device
    seed: int
    class_names: tuple[str, ...]
    classes: range
    real: list[Tensor]
    normalisation: Normalisation
    source_digest: str
    flow: Flow | None

    def whole(self, part: Tensor) -> Tensor:
        """Joins per-class rows (C, ipc, ...) of all slices to the whole set's (N, ...), classes in order."""
        joined: Tensor = self.mesh.over_slices.gather(part.contiguous())
        whole: Tensor = joined.flatten(0, 1)
        return whole

    def slice_of(self, images: Tensor) -> Tensor:
        """Returns the own classes' images (C, ipc, ...) of a whole set (N, ...), classes in order."""
        by_class = images.view(len(self.class_names), -1, *images.shape[1:])
        return by_class[self.classes.start : self.classes.stop]

    def mean_bits(self, part: Tensor) -> float | None:
        """Measures the mean bits per dim over all slices of their images (C, n, channels, H, W), uint8.

        Returns None without a flow. All workers call it, and get the same number.
        """
        if self.flow is None:
            return None
        report = measure(self.flow, part.flatten(0, 1).cpu(), seed=self.seed, device=self.device)
        sums = torch.tensor([float(report.bits_per_dim.sum()), len(report.bits_per_dim)], device=self.device)
        # Over everyone, so that all have the same number: the workers of a slice add it to both sums equally often.
        total, count = self.mesh.everyone.sum_(sums).tolist()
        return float(total / count)

    def real_bits(self) -> float | None:
        """Measures the mean bits per dim of some real images of every class; None without a flow."""
        per_class = max(1, REAL_BITS_IMAGES // len(self.class_names))
        count = min(per_class, *(len(images) for images in self.real))
        return self.mean_bits(controls.random_real(self.real, self.classes, count, seed=self.seed))


def load_share(config: RunConfig, source: DataSource, flow_name: str | None, context: WorkerContext) -> WorkerShare:
    """Loads one worker's share of a run. All workers call it.

    Args:
        config: of the run.
        source: as `open_checked` opened it.
        flow_name: as `open_checked` named it.
        context: of the worker.

    Raises:
        SourceError: on all workers, where one of them cannot read an image.
        FlowError: the flow is missing, damaged, or not the one of `flow_digest`.
    """
    mesh, device = build_mesh(context.collective, config.replicas), context.device
    slices = mesh.over_slices
    classes = class_slice(len(source.class_names), slices.rank, slices.size)
    read = load_slice(source, classes, mesh.everyone, device)
    digest = source_digest(read, classes, source.class_names, slices, device)
    real = [images.to(device) for images in read]
    normalisation = normalisation_of(real, slices)
    flow = None if flow_name is None else open_flow(config, flow_name, device=device)
    return WorkerShare(mesh, device, config.seed, source.class_names, classes, real, normalisation, digest, flow)
