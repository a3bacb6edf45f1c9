"""Encoders from images into W and W+, and the hypernetwork, built from common parts."""

from wrangan_cli.engine.models.encoders.files import (
    FILE,
    KINDS,
    AnyEncoder,
    encoder_sha256,
    incompatibility,
    kind_in,
    kind_of,
    load_encoder,
    load_hypernet,
    load_style_encoder,
    read_any,
    read_encoder,
    save_encoder,
    start_where_trained,
)
from wrangan_cli.engine.models.encoders.hypernet import (
    Hypernet,
    HypernetConfig,
    all_kernels,
    layer_shapes,
    refined,
    weight_offsets,
)
from wrangan_cli.engine.models.encoders.styles import (
    StyleEncoder,
    StyleEncoderConfig,
    average_image,
    encoded,
)
from wrangan_cli.engine.models.encoders.w import Encoder, EncoderConfig

__all__ = [
    "FILE",
    "KINDS",
    "AnyEncoder",
    "Encoder",
    "EncoderConfig",
    "Hypernet",
    "HypernetConfig",
    "StyleEncoder",
    "StyleEncoderConfig",
    "all_kernels",
    "average_image",
    "encoded",
    "encoder_sha256",
    "incompatibility",
    "kind_in",
    "kind_of",
    "layer_shapes",
    "load_encoder",
    "load_hypernet",
    "load_style_encoder",
    "read_any",
    "read_encoder",
    "refined",
    "save_encoder",
    "start_where_trained",
    "weight_offsets",
]
