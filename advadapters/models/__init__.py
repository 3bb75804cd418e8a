"""Backbones. To add one: a module in this folder, a row in MODELS and one in READ_SIZE."""

from advadapters.models import preact_resnet, resnet, vit, wide_resnet

MODELS = {
    "vit": vit.ViT,
    "resnet": resnet.ResNet,
    "preact_resnet": preact_resnet.PreActResNet,
    "wide_resnet": wide_resnet.WideResNet,
}

# Each reads the text of config.model.size, and raises UsageError.
READ_SIZE = {
    "vit": vit.read_size,
    "resnet": resnet.read_size,
    "preact_resnet": preact_resnet.read_size,
    "wide_resnet": wide_resnet.read_size,
}
