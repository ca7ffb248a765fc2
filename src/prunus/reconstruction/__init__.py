"""Recovering accuracy without training: what can be computed from data."""

from prunus.reconstruction.statistics import recalibrate

__all__ = ["recalibrate"]
