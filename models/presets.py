"""Sizes of the network."""

from models.eda_flowreg import Scale

PRESETS = {
    "tiny": {
        "depth": 2,
        "encoder": (32, 48, 64),
        "features": 16,
        "scales": (Scale(4, (32.0, 12.0), 2, (32, 48)), Scale(2, (8.0,), 1, (24, 32))),
        "refinement": (32, 48),
        "refinement_stride": 1,
        "fusion": 8,
    },
    "fast": {
        "depth": 1,
        "encoder": (32, 64),
        "features": 24,
        "scales": (Scale(4, (32.0, 12.0), 2, (32, 48)),),
        "refinement": (32, 48),
        "refinement_stride": 2,
        "fusion": 16,
    },
    "small": {
        "depth": 2,
        "encoder": (64, 96, 128),
        "features": 32,
        "scales": (Scale(4, (32.0, 12.0), 2, (64, 96)),),
        "refinement": (64, 96, 128),
        "refinement_stride": 1,
        "fusion": 16,
    },
    "base": {
        "depth": 2,
        "encoder": (96, 128, 192),
        "features": 48,
        # Experiments 12 and 17: a second scale brings nothing. 23: a refinement at a quarter of the resolution does.
        "scales": (Scale(4, (32.0, 12.0), 2, (96, 128)),),
        "refinement": (160, 224, 288),
        "refinement_stride": 1,
        "fusion": 32,
    },
}
"""Sizes of the network; `depth` is that of the residual blocks of encoders, refinement and fusion."""
