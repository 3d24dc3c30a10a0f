"""Checks a run before its work starts: the data, the flow, and settings that do not go together."""

from __future__ import annotations

from condense.condensation.config import RunConfig
from condense.condensation.warm_start import starting_images
from condense.data.sources import DataSource, open_source
from condense.data.splits import check_class_sizes
from condense.errors import FlowError
from condense.flow.pinning import open_flow
from condense.flow.store import flow_for
from condense.learners.networks import build_network
from condense.matching.config import check_matching
from condense.synthetic.decoder import check_factor
from condense.synthetic.soft_labels import check_labels
from condense.workers.devices import local_device
from condense.workers.mesh import check_mesh


def open_checked(config: RunConfig) -> tuple[DataSource, str | None]:
    """Opens the source and names the flow, after every check that needs no work. Call it before a run starts.

    Returns:
        The source, and the reference of the flow; None where no flow fits and no bits are asked for.

    Raises:
        SourceError: the data cannot be read, or a class is smaller than images_per_class.
        ConfigError: settings that exclude each other, or do not fit the images' size.
        FlowError: no flow fits, or the flow measures images of another shape.
    """
    source = open_source(config.source, config.data, seed=config.seed)
    if config.workers == 0:
        local_device(config.gpus_per_worker)
    elif config.workers != "auto":
        check_mesh(len(source.class_names), config.workers, config.replicas, config.max_workers)
    check_matching(config.objective, config.matching)
    check_labels(config.images.labels, config.objective)
    check_factor(config.images.factor, source.shape)
    check_class_sizes(source.class_counts, config.images_per_class, source.class_names)
    starting_images(config, source)
    build_network(config.network, source.shape, len(source.class_names))
    if config.flow != "auto":
        flow = open_flow(config, config.flow)
        if flow.shape != source.shape:
            raise FlowError(
                f"flow {config.flow} measures images of shape {flow.shape}, {config.source} has {source.shape}",
                "set data.image_size to the flow's, choose another flow, or fit one with `condense flow fit`",
            )
        return source, config.flow
    try:
        return source, flow_for(source.shape)
    except FlowError:
        if config.bits_weight > 0 or config.bits_target is not None:
            raise
        return source, None
