"""Twenty timm families, by a small member each: what any part that takes an extractor must get along with."""

FAMILIES = (
    "resnet18",
    "regnetx_002",
    "tf_efficientnet_lite0",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_050",
    "convnext_atto",
    "swin_tiny_patch4_window7_224",
    "coatnet_nano_rw_224",
    "pvt_v2_b0",
    "poolformer_s12",
    "efficientformerv2_s0",
    "mobilevit_xxs",
    "hrnet_w18_small",
    "dla34",
    "levit_128s",
    "vit_tiny_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "xcit_nano_12_p16_224",
)
"""Convolutions, windows, pooling, attention; NCHW and NHWC; five levels, three, two (levit) and one (vit, xcit)."""

ONE_STRIDE = frozenset(
    ("vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3", "xcit_nano_12_p16_224")
)
"""Plain transformers: one level of stride 16, so their adapter is `pyramid`."""
