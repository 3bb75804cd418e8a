"""Backbones. To add one, write a linen module with annotated fields, and a row in MODELS.

Its fields are size, classes, mean, std, stats_axes, added, film and dtype, and settings of
its own (see `schema`). Its `read_size` makes a size of the text of config.model.size, or
raises UsageError. `scales = True` says that sizes have `scaled(factor)`, for narrower
networks whose leaves are corners of those of the whole network.
"""

from advadapters.models import preact_resnet, resnet, vit, wide_resnet

MODELS = {
    "vit": vit.ViT,
    "resnet": resnet.ResNet,
    "preact_resnet": preact_resnet.PreActResNet,
    "wide_resnet": wide_resnet.WideResNet,
}
