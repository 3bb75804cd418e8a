"""Backbones. To add one: a module in this folder and a row in MODELS."""

from advadapters.models.vit import ViT

MODELS = {"vit": ViT}
