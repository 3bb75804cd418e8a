"""The same work in torch, which is imported here only."""

import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from parts.shapes import REFERENCE_VIT, SHAPES

EPS = 4 / 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DOMAINS = {"cotrain": 2}


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and added to its input."""

    def __init__(self, width, hidden, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        count, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).view(count, tokens, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(count, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A ViT with a class token for each domain.

    pool: "tokens" reads the mean of the patches, then normalised; "class" the class token
    after the norm.
    """

    def __init__(
        self, shape, domains=1, classes=1000, channels=3, pool="tokens", mean=MEAN, std=STD
    ):
        super().__init__()
        tokens = (shape.side // shape.patch) ** 2
        self.patch, self.pool = shape.patch, pool
        self.embed = nn.Linear(channels * shape.patch**2, shape.width)
        self.token = nn.Parameter(torch.zeros(domains, 1, shape.width))
        self.places = nn.Parameter(0.02 * torch.randn(1, tokens + 1, shape.width))
        self.blocks = nn.Sequential(
            *(Block(shape.width, shape.hidden, shape.heads) for _ in range(shape.depth))
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        self.head = nn.Linear(shape.width, classes)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images, domain):
        """images [B, H, W, C] in [0, 1], domain int [B] -> logits [B, L]."""
        x = (images - self.mean) / self.std
        count, side, _, channels = x.shape
        grid = side // self.patch
        x = x.view(count, grid, self.patch, grid, self.patch, channels).transpose(2, 3)
        x = self.embed(x.reshape(count, grid * grid, -1))
        x = torch.cat([self.token[domain], x], dim=1) + self.places
        x = self.blocks(x)
        x = self.norm(x[:, 1:].mean(1)) if self.pool == "tokens" else self.norm(x[:, 0])
        return self.head(x)


def load(model, params):
    """Our ViT's parameters (a tree of numpy arrays) in a torch ViT."""
    flat = {
        "token": params["class_token"],
        "places": params["pos_embed"],
        "embed.weight": params["patch_embed"]["kernel"].T,
        "embed.bias": params["patch_embed"]["bias"],
        **layer("norm", params["norm"]),
        **layer("head", params["head"]),
    }
    for number in range(len(model.blocks)):
        block, name = params[f"blocks_{number}"], f"blocks.{number}"
        for inner in (block, block["attn"], block["mlp"]):
            for part in ("norm1", "norm2", "qkv", "proj", "fc1", "fc2"):
                if part in inner:
                    flat |= layer(f"{name}.{part}", inner[part])
    given = {key: torch.tensor(np.asarray(value)) for key, value in flat.items()}
    missing, unknown = model.load_state_dict(given, strict=False)
    assert set(missing) == {"mean", "std"} and not unknown, (missing, unknown)
    return model


def layer(name, leaves):
    """A dense layer or a norm by torch's names."""
    if "kernel" in leaves:
        return {f"{name}.weight": leaves["kernel"].T, f"{name}.bias": leaves["bias"]}
    return {f"{name}.weight": leaves["scale"], f"{name}.bias": leaves["bias"]}


def training_step(shape, method, batch, pgd, fast):
    """(a step as a function of nothing that waits for its end, seconds of compiling).

    On the GPU, compiled, in bfloat16 where products are, if `fast`. Parameters ask for
    no gradient during the attack, or the compiled backward pass would make one.
    """
    device = "cuda" if fast else "cpu"
    torch.set_float32_matmul_precision("high" if fast else "highest")
    model = ViT(shape, DOMAINS.get(method, 1)).to(device)
    apply = torch.compile(model, dynamic=False) if fast else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.3, fused=True
    )
    average = [parameter.detach().clone() for parameter in model.parameters()]
    images = torch.rand(batch, shape.side, shape.side, 3, device=device)
    labels = torch.randint(1000, (batch,), device=device)
    clean = torch.zeros(batch, dtype=torch.long, device=device)
    robust = clean + DOMAINS.get(method, 1) - 1

    def loss_of(images, labels, domain):
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            logits = apply(images, domain)
        return F.cross_entropy(logits.float(), labels, label_smoothing=0.1)

    def attacked():
        model.requires_grad_(False)
        moved = images + EPS * (2 * torch.rand_like(images) - 1)
        moved = moved.clamp(0, 1)
        for _ in range(pgd):
            moved.requires_grad_(True)
            slope = torch.autograd.grad(loss_of(moved, labels, robust), moved)[0]
            moved = moved.detach() + 2 * EPS / pgd * slope.sign()
            moved = torch.clamp(torch.clamp(moved, images - EPS, images + EPS), 0, 1)
        model.requires_grad_(True)
        return moved.detach()

    def step():
        seen = {"nominal": [(images, clean)]}.get(method) or [(attacked(), robust)]
        if method == "cotrain":
            seen.insert(0, (images, clean))
        both, domain = (torch.cat(parts) for parts in zip(*seen, strict=True))
        loss = loss_of(both, labels.repeat(len(seen)), domain)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(average, list(model.parameters()), 1e-4)
        return loss.item()

    began = time.perf_counter()
    step()
    return step, time.perf_counter() - began


class CNN(nn.Module):
    """The reference's convolutional network, of images [B, H, W, 1]."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.ParameterDict(
            {name.replace(".", "_"): torch.tensor(leaf) for name, leaf in weights.items()}
        )

    def forward(self, images):
        x, w = ((images - 0.2860) / 0.3530).permute(0, 3, 1, 2), self.weights
        for name in ("conv1", "conv2"):
            x = F.conv2d(x, w[f"{name}_weight"], w[f"{name}_bias"], stride=2, padding=1)
            x = F.relu(x)
        x = F.relu(F.linear(x.flatten(1), w["fc1_weight"], w["fc1_bias"]))
        return F.linear(x, w["fc2_weight"], w["fc2_bias"])


class Counted(nn.Module):
    """A classifier of images [B, C, H, W], as torch's suites have them; counts images."""

    def __init__(self, model, *rest):
        super().__init__()
        self.model, self.rest, self.count = model, rest, 0

    def forward(self, images):
        self.count += len(images)
        rest = [part.expand(len(images)) for part in self.rest]
        return self.model(images.permute(0, 2, 3, 1), *rest)


def network(chosen, device):
    """The torch model of one of `cascades`' networks."""
    import reference_networks as reference

    if chosen["torch"] == "cnn":
        return Counted(CNN(reference.arrays("cnn.npz"))).to(device)
    if chosen["torch"] == "vit":
        looks = dict(classes=10, channels=1, pool="class", mean=(0.2860,), std=(0.3530,))
        params = reference.vit_params(reference.arrays("vit.npz"))
        model = load(ViT(REFERENCE_VIT, **looks), params)
    else:
        name, params = chosen["torch"]
        model = load(ViT(SHAPES[name]), params)
    return Counted(model.to(device), torch.zeros(1, dtype=torch.long, device=device))


def suite(model, norm, eps, device):
    """The official AutoAttack, by either of its names; ModuleNotFoundError without them."""
    names = {"linf": "Linf", "l2": "L2", "l1": "L1"}
    given = dict(norm=names[norm], eps=eps, version="standard", device=device, seed=0)
    try:
        from autoattack import AutoAttack
    except ModuleNotFoundError:
        from pyautoattack import AutoAttack

        return AutoAttack(model, **given), "batch_size"
    return AutoAttack(model, **given, verbose=False), "bs"


def autoattack(chosen, light, batch, fast):
    """(bool [N] of images that are robust under the official suite, its forward passes)."""
    device = "cuda" if fast else "cpu"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    model = network(chosen, device).eval()
    runner, size = suite(model, chosen["norm"], chosen["eps"], device)
    runner.attacks_to_run = list(light.get("version", runner.attacks_to_run))
    if "steps" in light:
        for part in (runner.apgd, runner.apgd_targeted, runner.fab):
            part.n_iter = light["steps"]
    if "targets" in light:
        runner.apgd_targeted.n_target_classes = light["targets"]
        runner.fab.n_target_classes = light["targets"]
    runner.square.n_queries = light.get("queries", runner.square.n_queries)
    images = torch.tensor(chosen["images"]).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.tensor(np.asarray(chosen["labels"]), dtype=torch.long, device=device)
    moved = runner.run_standard_evaluation(images, labels, **{size: batch})
    moved, forwards = moved[0] if isinstance(moved, tuple) else moved, model.count
    with torch.no_grad():
        said = [model(part).argmax(1) for part in moved.split(batch)]
    return (torch.cat(said) == labels).cpu().numpy(), forwards
