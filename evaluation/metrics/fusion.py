"""All metrics of a fused image at once."""

import numpy as np

from evaluation.metrics import edge_preservation, structural_similarity, visual_information
from evaluation.metrics.common import check_sources
from evaluation.metrics.contrast import average_gradient, spatial_frequency, standard_deviation
from evaluation.metrics.correlation import cc, scd
from evaluation.metrics.human_vision import qcb, qcv
from evaluation.metrics.mutual_information import entropy, mi_bits, mi_nats
from evaluation.metrics.structural_similarity import qy


def fusion_metrics(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> dict[str, float]:
    """Compute all fusion metrics of one fused image.

    Args:
        fixed, reference, fused: (H, W), at least 64 pixels a side, grey levels 0..255.

    Returns:
        First the columns of the papers: ``qabf`` (Xydeas and Petrovic), ``qcv`` (lower is better), ``qvif``
        (VIFF), ``qs`` (Piella's Q), ``qssim`` (the sum), ``qcb``, ``qy``, ``mi`` (bits), ``en``, ``sd``,
        ``sf``, ``ag``. Then the other conventions and metrics: ``qssim_mean``, ``qw``, ``vif`` (the sum),
        ``cc``, ``scd``, ``qabf_zliu``, ``mi_nats``.

    Raises:
        ValueError: images that are not grey, differ in shape, are too small or leave 0..255.
    """
    a, b, f = check_sources(fixed, reference, fused)
    # What several metrics need is computed once.
    gradients = [edge_preservation.sobel_zero_padded(image) for image in (a, b, f)]
    structure = structural_similarity.structure(a, b, f)
    gains = visual_information.gains(a, f), visual_information.gains(b, f)
    return {
        "qabf": edge_preservation.xydeas(*gradients),
        "qcv": qcv(a, b, f),
        "qvif": visual_information.viff_of(*gains),
        "qs": structure.piella_q,
        "qssim": structure.ssim_sum,
        "qcb": qcb(a, b, f),
        "qy": qy(a, b, f),
        "mi": mi_bits(a, b, f),
        "en": entropy(f),
        "sd": standard_deviation(f),
        "sf": spatial_frequency(f),
        "ag": average_gradient(f),
        "qssim_mean": structure.ssim_sum / 2,
        "qw": structure.piella_qw,
        "vif": sum(visual_information.vif_of(scales) for scales in gains),
        "cc": cc(a, b, f),
        "scd": scd(a, b, f),
        "qabf_zliu": edge_preservation.zliu(*gradients),
        "mi_nats": mi_nats(a, b, f),
    }
