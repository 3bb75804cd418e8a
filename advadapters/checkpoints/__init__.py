"""Checkpoints: the only room that knows Orbax."""

from advadapters.checkpoints.store import Checkpoints, Damaged, NotFinite

__all__ = ["Checkpoints", "Damaged", "NotFinite"]
