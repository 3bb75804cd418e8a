"""Backbones. To add one: a linen module whose fields are annotated, and a row in MODELS.

Its fields are size, classes, mean, std, stats_axes, added, film and dtype, and settings of
its own (see `schema`). `read_size` makes its size of the text of config.model.size, and
raises UsageError; `scales = True` says that sizes have `scaled(factor)`, for narrower
networks whose leaves are corners of the whole one's.
"""

from advadapters.models import preact_resnet, resnet, vit, wide_resnet

MODELS = {
    "vit": vit.ViT,
    "resnet": resnet.ResNet,
    "preact_resnet": preact_resnet.PreActResNet,
    "wide_resnet": wide_resnet.WideResNet,
}
