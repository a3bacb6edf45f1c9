"""The headings under which the help lists the options; the first is `Options`, the default.

Imports none of the engine's networks, so that help pages appear at once.
"""

from collections.abc import Mapping, Sequence

from wrangan_cli.engine.inversion.method_settings import METHODS, all_settings, methods_having

Panels = Mapping[str, Sequence[str]]
"""Heading → names of parameters, in the order of the headings in the help."""
MACHINE = "Machine"
_METHOD = ("method", "seconds", "steps", "size", "init", "alpha", "epsilon_lr", "lr", "optimizer", "seed")
_LOSS = ("l2_weight", "perceptual_weight", "perceptual", "loss_side", "stop_at", "plateau", "coarse")


def inversion_panels() -> dict[str, list[str]]:
    """The headings of `wrangan invert`: the main options, the loss, and the options of some methods only."""
    panels: dict[str, list[str]] = {"Method": list(_METHOD), "Loss and stopping": list(_LOSS)}
    others = [name for name in all_settings() if name not in (*_METHOD, *_LOSS)]
    for name in sorted(others, key=lambda name: -len(methods_having(name))):
        methods = methods_having(name)
        some = "All methods" if methods == METHODS else f"{', '.join(methods)} only"
        panels.setdefault(some, []).append(name)
    panels[MACHINE] = ["batch", "device", "cuda_graph", "as_json", "null"]
    return panels


_RUN = ("device", "seed", "snapshot_images", "keep_snapshots")
_AVERAGE_AND_DATA = ("ema_images", "ema_rampup", "flip", "resize_filter", "augment", "augment_target")
ADVERSARIAL: Panels = {
    "Network": ("resolution", "channels", "style_dim", "mapping_layers", "noise"),
    "σ": ("layers", "initial_std", "epsilon_per", "std_form", "keep_std"),
    "Loss": (
        *("lr", "r1_gamma", "r1_interval", "path_length_weight", "path_length_interval", "style_mixing"),
        *("discriminator", "projected_weight", "projected_side", "perceptual"),
    ),
    "Average and data": _AVERAGE_AND_DATA,
    "σ by sensitivity": ("probes", "distortion", "floor", "exponent", "tie", "side", "epsilon_lr"),
    "KID while training": ("kid_images", "kid_samples", "kid_reference"),
    "Run": (*_RUN, "dry_run", "precision", "low_precision_resolutions", "accumulate", "compile"),
}
ENCODER: Panels = {
    "Loss": ("lr", "l2_weight", "perceptual_weight", "perceptual", "w_weight", "w_power"),
    "Network": ("backbone", "pretrained", "widths", "blocks", "input_side"),
    "Data": ("image_side", "pair_batch", "pair_augment", "flip", "resize_filter", "ema_images"),
    "Kinds e4e and restyle only": (
        *("heads", "deltas", "head_width", "progressive_start", "progressive_every", "delta_weight"),
        *("latent_weight", "latent_lr", "latent_r1_gamma", "latent_r1_interval", "latent_pool"),
    ),
    "Kinds restyle and hyperstyle only": ("passes",),
    "Kind hyperstyle only": (
        *("shared_width", "shared_inner", "inner", "features", "separate", "offset_rank", "offset_kernel"),
    ),
    "Run": (*_RUN, "dry_run"),
}
ATTRIBUTES: Panels = {
    "Network": ("resolution", "widths"),
    "Training": ("lr", "weight_decay", "balance", "flip", "resize_filter", "augment"),
    "Ages": ("use_ages", "young_until", "old_from"),
    "Run": _RUN,
}
CLIP: Panels = {
    "Face": ("face", "smoothing", "size"),
    "Key frames and the clip's ε": ("key_frames", "steps", "lr", "epsilon_lr", "alpha", "init", "seed"),
    "Each frame": ("frame_steps", "frame_lr", "frame_epsilon", "frame_alpha"),
    "Loss": ("perceptual", "perceptual_weight"),
    MACHINE: ("device", "as_json", "null"),
}
EVALUATE: Panels = {
    "Photographs and codes": ("codes", "photos", "against", "metric_side", "csv_file"),
    "Edits (lec, edit-success)": ("direction", "strength"),
    "Samples": ("reference", "save_reference", "samples", "epsilon", "seed"),
    MACHINE: ("batch", "device", "as_json"),
}
