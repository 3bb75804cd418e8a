"""Names of vision transformers in timm, Hugging Face's transformers and flax.

timm's names are those of the programs of DeiT, MAE, DINO and DINOv2 too. A distillation
token is one more token behind the class token, as a register is, and becomes a prompt here.
"""

from advadapters.weights.rules import WRAPPERS, Family, Rule

# What a head of its own for distillation, or a dense layer before the head, would be here:
# no model has it, so `config.start.dropped` has to name it.
_ODD_HEADS = ("head_dist", "pre_logits")


def _dense(ours: str, theirs: str, layout: str = "linear") -> tuple[Rule, ...]:
    """The rules of a dense layer of torch's."""
    return (
        Rule(f"{ours}/kernel", (f"{theirs}.weight",), layout),
        Rule(f"{ours}/bias", (f"{theirs}.bias",), "vector"),
    )


def _norm(ours: str, theirs: str, when: tuple[str, str] | None = None) -> tuple[Rule, ...]:
    """The rules of a layer norm of torch's."""
    return (
        Rule(f"{ours}/scale", (f"{theirs}.weight",), "vector", when),
        Rule(f"{ours}/bias", (f"{theirs}.bias",), "vector", when),
    )


def _qkv(theirs: str) -> tuple[Rule, ...]:
    """The rules of queries, keys and values that are layers of torch's of their own."""
    names = [f"{theirs}.{part}" for part in ("query", "key", "value")]
    ours = "blocks_{i}/attn/qkv"
    return (
        Rule(f"{ours}/kernel", tuple(f"{name}.weight" for name in names), "linears"),
        Rule(f"{ours}/bias", tuple(f"{name}.bias" for name in names), "vectors"),
    )


TIMM = Family(
    "timm",
    "vit",
    rules=(
        Rule("class_token", ("cls_token",), "tokens"),
        Rule("pos_embed", ("pos_embed",), "tokens"),
        Rule("prompt", ("reg_token",), "tokens"),
        *_dense("patch_embed", "patch_embed.proj", "patches"),
        *_norm("norm_pre", "norm_pre"),
        *_norm("blocks_{i}/norm1", "blocks.{i}.norm1"),
        *_dense("blocks_{i}/attn/qkv", "blocks.{i}.attn.qkv"),
        *_dense("blocks_{i}/attn/proj", "blocks.{i}.attn.proj"),
        Rule("blocks_{i}/layer_scale1/gamma", ("blocks.{i}.ls1.gamma",), "vector"),
        *_norm("blocks_{i}/norm2", "blocks.{i}.norm2"),
        *_dense("blocks_{i}/mlp/fc1", "blocks.{i}.mlp.fc1"),
        *_dense("blocks_{i}/mlp/fc2", "blocks.{i}.mlp.fc2"),
        Rule("blocks_{i}/layer_scale2/gamma", ("blocks.{i}.ls2.gamma",), "vector"),
        *_norm("norm", "fc_norm", when=("pool", "tokens")),
        *_norm("norm", "norm"),
        *_dense("head", "head"),
        *(rule for name in _ODD_HEADS for rule in _dense(name, name)),
    ),
    spellings=(
        (r"^(register_tokens|dist_token)$", "reg_token"),  # DINOv2's program, DeiT's
        (r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),  # DINOv2's blocks in chunks
        (r"\.gamma_([12])$", r".ls\1.gamma"),  # DeiT-3's program
        (r"^(linear_head|fc|classifier)\.", "head."),
        (r"^pre_logits\.fc\.", "pre_logits."),
    ),
    # The decoder and masks of pretraining. MAE's decoder has all that is named so.
    ignored=r"mask_token|decoder[._].*|(dino|ibot)_head\..*",
    usual=dict(gelu="erf"),
)

_HF_PREFIX = WRAPPERS + (
    r"(?:(?:vit|deit|dinov2|dinov2_with_registers|encoder(?=\.(?:embeddings|encoder)))\.)*"
)
# As transformers 5 calls its modules; its files keep the older names.
_HF_SPELLINGS = (
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
_HF_IGNORED = r"embeddings\.mask_token|pooler\..*|decoder\..*|(.*[._])?position_ids"

_HF_EMBEDDINGS = (
    Rule("class_token", ("embeddings.cls_token",), "tokens"),
    Rule("pos_embed", ("embeddings.position_embeddings",), "tokens"),
    *_dense("patch_embed", "embeddings.patch_embeddings.projection", "patches"),
    *_norm("norm", "layernorm"),
    *_dense("head", "classifier"),
)

HF_VIT = Family(
    "transformers ViT",
    "vit",
    rules=(
        *_HF_EMBEDDINGS,
        Rule("prompt", ("embeddings.distillation_token",), "tokens"),
        *_norm("blocks_{i}/norm1", "encoder.layer.{i}.layernorm_before"),
        *_qkv("encoder.layer.{i}.attention.attention"),
        *_dense("blocks_{i}/attn/proj", "encoder.layer.{i}.attention.output.dense"),
        *_norm("blocks_{i}/norm2", "encoder.layer.{i}.layernorm_after"),
        *_dense("blocks_{i}/mlp/fc1", "encoder.layer.{i}.intermediate.dense"),
        *_dense("blocks_{i}/mlp/fc2", "encoder.layer.{i}.output.dense"),
        *_dense("head_dist", "distillation_classifier"),
    ),
    prefix=_HF_PREFIX,
    spellings=(
        *_HF_SPELLINGS,
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
        (r"^cls_classifier\.", "classifier."),  # of DeiT with both heads
    ),
    ignored=_HF_IGNORED,
    usual=dict(gelu="erf", norm_eps=1e-12),
)

HF_DINOV2 = Family(
    "transformers DINOv2",
    "vit",
    rules=(
        *_HF_EMBEDDINGS,
        Rule("prompt", ("embeddings.register_tokens",), "tokens"),
        *_norm("blocks_{i}/norm1", "encoder.layer.{i}.norm1"),
        *_qkv("encoder.layer.{i}.attention.attention"),
        *_dense("blocks_{i}/attn/proj", "encoder.layer.{i}.attention.output.dense"),
        Rule(
            "blocks_{i}/layer_scale1/gamma",
            ("encoder.layer.{i}.layer_scale1.lambda1",),
            "vector",
        ),
        *_norm("blocks_{i}/norm2", "encoder.layer.{i}.norm2"),
        *_dense("blocks_{i}/mlp/fc1", "encoder.layer.{i}.mlp.fc1"),
        *_dense("blocks_{i}/mlp/fc2", "encoder.layer.{i}.mlp.fc2"),
        Rule(
            "blocks_{i}/layer_scale2/gamma",
            ("encoder.layer.{i}.layer_scale2.lambda1",),
            "vector",
        ),
    ),
    prefix=_HF_PREFIX,
    spellings=_HF_SPELLINGS,
    ignored=_HF_IGNORED,
    usual=dict(gelu="erf", norm_eps=1e-6),
)


_CLIP_BLOCK = "encoder.layers.{i}"
_CLIP_PARTS = tuple(f"{_CLIP_BLOCK}.self_attn.{part}_proj" for part in "qkv")

# The vision tower of CLIP. The projection of its class token stands where a head would be.
HF_CLIP = Family(
    "transformers CLIP",
    "vit",
    rules=(
        Rule("class_token", ("embeddings.class_embedding",), "token"),
        Rule("pos_embed", ("embeddings.position_embedding.weight",), "table"),
        *_dense("patch_embed", "embeddings.patch_embedding", "patches"),
        *_norm("norm_pre", "pre_layrnorm"),  # as it is spelled there
        *_norm("blocks_{i}/norm1", f"{_CLIP_BLOCK}.layer_norm1"),
        Rule(
            "blocks_{i}/attn/qkv/kernel",
            tuple(f"{name}.weight" for name in _CLIP_PARTS),
            "linears",
        ),
        Rule(
            "blocks_{i}/attn/qkv/bias",
            tuple(f"{name}.bias" for name in _CLIP_PARTS),
            "vectors",
        ),
        *_dense("blocks_{i}/attn/proj", f"{_CLIP_BLOCK}.self_attn.out_proj"),
        *_norm("blocks_{i}/norm2", f"{_CLIP_BLOCK}.layer_norm2"),
        *_dense("blocks_{i}/mlp/fc1", f"{_CLIP_BLOCK}.mlp.fc1"),
        *_dense("blocks_{i}/mlp/fc2", f"{_CLIP_BLOCK}.mlp.fc2"),
        *_norm("norm", "post_layernorm"),
        *_dense("head", "visual_projection"),
    ),
    prefix=WRAPPERS + r"(?:vision_model\.)*",
    ignored=r"text_model\..*|text_projection\..*|logit_scale|embeddings\.position_ids",
    usual=dict(norm_eps=1e-5, pool="class"),
)


def _flax_dense(ours: str, theirs: str, layout: str = "matrix") -> tuple[Rule, ...]:
    """The rules of a dense layer of flax's."""
    return (
        Rule(f"{ours}/kernel", (f"{theirs}/kernel",), layout),
        Rule(f"{ours}/bias", (f"{theirs}/bias",), "vector"),
    )


def _flax_norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    """The rules of a layer norm of flax's."""
    return (
        Rule(f"{ours}/scale", (f"{theirs}/scale",), "vector"),
        Rule(f"{ours}/bias", (f"{theirs}/bias",), "vector"),
    )


_BLOCK = "Transformer/encoderblock_{i}"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_PARTS = tuple(f"{_ATTENTION}/{part}" for part in ("query", "key", "value"))

FLAX = Family(
    "vision_transformer and big_vision",
    "vit",
    rules=(
        Rule("class_token", ("cls",), "tokens"),
        Rule("pos_embed", ("pos_embedding",), "tokens"),
        *_flax_dense("patch_embed", "embedding", "flax_patches"),
        *_flax_norm("blocks_{i}/norm1", f"{_BLOCK}/LayerNorm_0"),
        Rule(
            "blocks_{i}/attn/qkv/kernel",
            tuple(f"{name}/kernel" for name in _PARTS),
            "flax_linears",
        ),
        Rule(
            "blocks_{i}/attn/qkv/bias",
            tuple(f"{name}/bias" for name in _PARTS),
            "flax_vectors",
        ),
        *_flax_dense("blocks_{i}/attn/proj", f"{_ATTENTION}/out", "flax_out"),
        *_flax_norm("blocks_{i}/norm2", f"{_BLOCK}/LayerNorm_1"),
        *_flax_dense("blocks_{i}/mlp/fc1", f"{_BLOCK}/MlpBlock_0/Dense_0"),
        *_flax_dense("blocks_{i}/mlp/fc2", f"{_BLOCK}/MlpBlock_0/Dense_1"),
        *_flax_norm("norm", "Transformer/encoder_norm"),
        *_flax_dense("head", "head"),
        *_flax_dense("pre_logits", "pre_logits"),
    ),
    prefix=r"(?:(?:params|opt|target|optimizer|img)/)*",
    spellings=(
        (r"^Transformer/posembed_input/pos_embedding$", "pos_embedding"),
        (r"/MultiHeadDotProductAttention_1/", "/MultiHeadDotProductAttention_0/"),
        (r"/LayerNorm_2/", "/LayerNorm_1/"),  # before flax's linen, as the one above
        (r"/MlpBlock_[13]/", "/MlpBlock_0/"),
    ),
    ignored=r"(opt/)?state/.*|.*/(step|count)",
    # flax.linen's GELU is by tanh unless told otherwise.
    usual=dict(gelu="tanh", norm_eps=1e-6, mean=(0.5,) * 3, std=(0.5,) * 3),
)
