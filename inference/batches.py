"""The pairs of each modality on their way to their results: what they depend on, and where they go."""

import hashlib
import os
from dataclasses import dataclass
from dataclasses import field as field_
from pathlib import Path

from data.pairs import PairFiles
from inference.mirror_check import MirrorCheck
from inference.network import Network
from inference.options import Options
from inference.pair_fuser import PairFuser
from inference.results.folder import ResultFolder
from inference.results.layout import INDEX
from inference.volumes.field import VolumeField
from inference.volumes.pair import VolumePair
from utils.arguments import FLOW_FORMATS
from utils.files import check_inputs_stay
from utils.processes import join, part, rank, wait_for_others, world


@dataclass
class Batch:
    """The pairs of one modality on their way to their results.

    Attributes:
        modality: of the moving images.
        pairs: all of them.
        folder: where their results go.
        rows: of the table, by name, as far as they are made.
        mirror: looks at some of the pairs.
        field: where the pairs are slices of a volume, its displacement field.
        scores: columns of the table that are the same for all pairs, such as those of a whole volume.
        bound_ratio: of the `inference.network.Network`.
        luma_steps: of `inference.pair_fuser.PairFuser.__call__`.
    """

    modality: str
    pairs: list[PairFiles]
    folder: ResultFolder
    rows: dict[str, dict]
    mirror: MirrorCheck
    field: VolumeField | None = None
    scores: dict[str, float] = field_(default_factory=dict)
    bound_ratio: float | None = None
    luma_steps: int = 0


def make_batches(
    options: Options, chosen: dict[str, list[PairFiles]], network: Network, volumes: VolumePair | None
) -> list[Batch]:
    """Make a batch of the pairs of each modality, with the rows that --resume takes over.

    Raises:
        FileError: a result would be written over what it is made from, or results of other settings be mixed.
    """
    extras = {"flow": options.save_flow, "maps": options.save_maps, "figures": options.save_figures}
    extras |= {"flow_format": options.flow_format or FLOW_FORMATS[0], "volumes": volumes is not None}
    extras |= {"blend": options.blend is not None, "colormap": options.colormap}
    settings = what_results_depend_on(options, network, volumes)
    steps = {modality: options.luma_steps_of(modality) for modality in chosen}
    folders = {
        modality: ResultFolder(options.output / modality, modality, settings | {"luma_steps": number}, **extras)
        for modality, number in steps.items()
    }
    inputs = [path for pairs in chosen.values() for pair in pairs for path in pair.paths.values()]
    inputs += filter(None, (options.checkpoint, options.csv, options.fixed, options.moving, options.label))
    inputs += options.marks.values()
    outputs = [path for name, folder in folders.items() for path in folder.all_files(chosen[name])]
    check_inputs_stay(inputs, [*outputs, options.output / INDEX])
    fuse_as_it_lies = PairFuser(network.model, network.device, **network.settings | {"multistart": False})
    batches = []
    for modality, pairs in chosen.items():
        rows = folders[modality].rows_to_keep(pairs, options.resume, bool(volumes))
        mirror = MirrorCheck(fuse_as_it_lies)
        known = {"bound_ratio": network.bound_ratio, "luma_steps": steps[modality]}
        batches.append(Batch(modality, pairs, folders[modality], rows, mirror, **known))
    return batches


def what_results_depend_on(options: Options, network: Network, volumes: VolumePair | None) -> dict:
    """List what results depend on beside the pairs: --resume takes over none that were made otherwise."""
    return {
        "checkpoint": Path(options.checkpoint).name,
        "sha256": file_digest(options.checkpoint),
        **network.settings,
        "engine": options.engine,
        "color": options.color,
        "colormap": options.colormap,
        "blend": options.blend,
        "window": list(volumes.window) if volumes else None,
        "resample": options.resample,
        "prealign": options.prealign,
        "frame": options.frame,
        "fit": options.fit,
        # Those of images are told by the pairs' own fingerprints.
        "marks": {role: file_digest(path) for role, path in options.marks.items()} or None if volumes else None,
    }


def file_digest(path: str | os.PathLike) -> str:
    """Compute the SHA-256 of a file, or of the files of a DICOM series in a folder."""
    path = Path(path)
    files = sorted(x for x in path.iterdir() if x.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def prepare_folders(batches: list[Batch]) -> None:
    """Make the folders that get results, once all processes are here, and wait until they are made.

    The rows that are finished are then in the table and in the first process's part.

    Raises:
        FileError: a folder cannot be made, or nothing can be written in it.
    """
    join()
    for batch in batches if rank() == 0 else ():
        if not batch.pairs:
            continue
        finished = batch.rows.values()
        batch.folder.prepare()
        if finished:
            batch.folder.write_rows(finished)  # what was finished may lie in the parts alone
        batch.folder.remove_parts()
        if finished and world() > 1:
            batch.folder.write_rows(finished, part())
    wait_for_others()
