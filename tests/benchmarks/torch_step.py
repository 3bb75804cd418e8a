"""The work of a training step in torch, for `train_step`: the same network and attack."""

import torch
from torch import nn
from torch.nn import functional as F

EPS = 4 / 255
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Attention and MLP, each after a layer norm and added to its input."""

    def __init__(self, width, hidden, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        count, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).view(count, tokens, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(count, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A ViT with a class token for each of two domains, read by the mean of the patches."""

    def __init__(self, shape, domains):
        super().__init__()
        tokens = (shape.side // shape.patch) ** 2
        self.patch = shape.patch
        self.embed = nn.Linear(3 * shape.patch**2, shape.width)
        self.token = nn.Parameter(torch.zeros(domains, 1, shape.width))
        self.places = nn.Parameter(0.02 * torch.randn(1, tokens + 1, shape.width))
        self.blocks = nn.Sequential(
            *(Block(shape.width, shape.hidden, shape.heads) for _ in range(shape.depth))
        )
        self.norm, self.head = (
            nn.LayerNorm(shape.width, eps=1e-6),
            nn.Linear(shape.width, 1000),
        )
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))

    def forward(self, images, domain):
        """images [B, H, W, 3] in [0, 1], domain int [B] -> logits [B, 1000]."""
        x = (images - self.mean) / self.std
        count, side = x.shape[:2]
        grid = side // self.patch
        x = x.view(count, grid, self.patch, grid, self.patch, 3).transpose(2, 3)
        x = self.embed(x.reshape(count, grid * grid, -1))
        x = torch.cat([self.token[domain], x], dim=1) + self.places
        return self.head(self.norm(self.blocks(x)[:, 1:].mean(1)))


def make(shape, method, batch, pgd, fast):
    """A step as a function of nothing, on the GPU in bfloat16 if `fast`."""
    device = "cuda" if fast else "cpu"
    torch.set_float32_matmul_precision("high" if fast else "highest")
    model = ViT(shape, 2 if method == "cotrain" else 1).to(device)
    apply = torch.compile(model) if fast else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.3, fused=True
    )
    average = [parameter.detach().clone() for parameter in model.parameters()]
    images = torch.zeros(batch, shape.side, shape.side, 3, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    clean = torch.zeros(batch, dtype=torch.long, device=device)
    robust = clean + (method == "cotrain")

    def loss_of(images, labels, domain):
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            logits = apply(images, domain)
        return F.cross_entropy(logits.float(), labels, label_smoothing=0.1)

    def attacked():
        moved = images + EPS * (2 * torch.rand_like(images) - 1)
        moved = moved.clamp(0, 1)
        for _ in range(pgd):
            moved.requires_grad_(True)
            slope = torch.autograd.grad(loss_of(moved, labels, robust), moved)[0]
            moved = moved.detach() + 2 * EPS / pgd * slope.sign()
            moved = torch.clamp(torch.clamp(moved, images - EPS, images + EPS), 0, 1)
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
        if fast:
            torch.cuda.synchronize()
        return loss.item()

    return step
