"""All metrics by name."""

from collections.abc import Mapping, Sequence

from wrangan_cli.engine.errors import UsageError
from wrangan_cli.engine.metrics import (
    corruption,
    fid,
    kid,
    layer_influence,
    lpips,
    ms_ssim,
    mse,
    precision,
    psnr,
    recall,
    std_share,
)
from wrangan_cli.engine.metrics.base import LayerMetric, PairMetric, SampleMetric

PAIR_METRICS: dict[str, PairMetric] = {
    metric.name: metric for metric in (mse.METRIC, psnr.METRIC, ms_ssim.METRIC, *lpips.METRICS)
}
SAMPLE_METRICS: dict[str, SampleMetric] = {
    metric.name: metric for metric in (fid.METRIC, kid.METRIC, precision.METRIC, recall.METRIC)
}
CODE_METRICS: dict[str, SampleMetric] = {metric.name: metric for metric in corruption.METRICS}
LAYER_METRICS: dict[str, LayerMetric] = {
    metric.name: metric for metric in (std_share.METRIC, layer_influence.METRIC)
}


_NEEDS: dict[str, tuple[Mapping[str, object], str]] = {
    "pairs": (PAIR_METRICS, "compares pairs: give --codes and --photos"),
    "samples": (SAMPLE_METRICS, "compares sets of samples: leave out --codes and --photos"),
    "codes": (CODE_METRICS, "looks at codes alone: give --codes, and no --photos"),
    "layers": (LAYER_METRICS, "looks at a model's layers: leave out --codes and --photos"),
}


def pair_metrics(names: Sequence[str]) -> list[PairMetric]:
    """The metrics of `names`, each once; UsageError for an unknown one or one of another kind."""
    return [PAIR_METRICS[name] for name in _of_kind(names, "pairs")]


def sample_metrics(names: Sequence[str]) -> list[SampleMetric]:
    """Those of `names` that compare sets of samples; metrics of layers may be among them."""
    return [SAMPLE_METRICS[name] for name in _of_kind(names, "samples", "layers") if name in SAMPLE_METRICS]


def layer_metrics(names: Sequence[str]) -> list[LayerMetric]:
    """Those of `names` that look at layers; metrics of samples may be among them."""
    return [LAYER_METRICS[name] for name in _of_kind(names, "samples", "layers") if name in LAYER_METRICS]


def code_metrics(names: Sequence[str]) -> list[SampleMetric]:
    """The metrics of `names`, each once; UsageError for an unknown one or one of another kind."""
    return [CODE_METRICS[name] for name in _of_kind(names, "codes")]


def _of_kind(names: Sequence[str], *kinds: str) -> list[str]:
    """`names`, each once."""
    for name in names:
        kind = next((kind for kind, (known, _) in _NEEDS.items() if name in known), None)
        if kind is None:
            expected = ", ".join(name for known, _ in _NEEDS.values() for name in known)
            raise UsageError(f"metric {name!r}: expected one of {expected}")
        if kind not in kinds:
            raise UsageError(f"metric {name} {_NEEDS[kind][1]}")
    return list(dict.fromkeys(names))
