"""Accurate and robust vision networks whose trade-off stays adjustable."""

__version__ = "0.1.0"
