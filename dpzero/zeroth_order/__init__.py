"""Zeroth-order steps: directions, perturbation, loss differences. Knows nothing of privacy or tasks."""

from __future__ import annotations

from .directions import Gaussian
from .two_point import TwoPoint

__all__ = ["Gaussian", "TwoPoint"]
