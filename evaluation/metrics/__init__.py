"""Metrics of image fusion and registration that agree with the field's reference toolboxes.

Every image is a grey image, float, shape (H, W), in grey levels 0..255. A fusion metric takes
``(fixed, reference, fused)``: the fixed image, the other source in alignment with it (the truth where there
is one), and the fused image. Constant images give a defined value: the best one where nothing differs.

``fusion_metrics``, ``fidelity_metrics`` and ``registration_metrics`` give all of them at once;
``python -m tools.score --help``
scores folders of images (`evaluation.scoring`).
"""

from evaluation.metrics.contrast import average_gradient, spatial_frequency, standard_deviation
from evaluation.metrics.correlation import cc, ncc, scd
from evaluation.metrics.displacement import endpoint_error, folding_share
from evaluation.metrics.edge_preservation import qabf
from evaluation.metrics.fidelity import bone_holes, color_kept, contrast_kept, fidelity_metrics, tracer_order
from evaluation.metrics.fusion import fusion_metrics
from evaluation.metrics.human_vision import qcb, qcv
from evaluation.metrics.mutual_information import (
    entropy,
    mi_bits,
    mi_nats,
    mutual_information,
    normalised_mutual_information,
)
from evaluation.metrics.registration import registration_metrics, rmse
from evaluation.metrics.structural_similarity import qy, ssim, structure
from evaluation.metrics.visual_information import vif_sum, viff

__all__ = [
    "LOWER_IS_BETTER", "average_gradient", "bone_holes", "cc", "color_kept", "contrast_kept", "endpoint_error",
    "entropy", "fidelity_metrics", "folding_share", "fusion_metrics", "mi_bits", "mi_nats", "mutual_information", "ncc",
    "normalised_mutual_information", "qabf", "qcb", "qcv", "qy", "registration_metrics",
    "rmse", "scd", "spatial_frequency", "ssim", "standard_deviation", "structure", "tracer_order", "vif_sum", "viff",
]  # fmt: skip

LOWER_IS_BETTER = frozenset({"qcv", "rmse", "bone_holes", "near_white", "hue_error"})
"""Metrics that improve as they fall; every other metric here improves as it rises."""
