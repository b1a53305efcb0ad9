"""Tensors that several tests start from."""

from tests.examples import constant_flow, noise

__all__ = ["constant_flow", "noise"]
