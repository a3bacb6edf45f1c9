"""All metrics by name."""

from collections.abc import Sequence

from wrangan_cli.engine.errors import UsageError
from wrangan_cli.engine.metrics import corruption, fid, kid, lpips, ms_ssim, mse, precision, psnr, recall
from wrangan_cli.engine.metrics.base import PairMetric, SampleMetric

PAIR_METRICS: dict[str, PairMetric] = {
    metric.name: metric for metric in (mse.METRIC, psnr.METRIC, ms_ssim.METRIC, *lpips.METRICS)
}
SAMPLE_METRICS: dict[str, SampleMetric] = {
    metric.name: metric for metric in (fid.METRIC, kid.METRIC, precision.METRIC, recall.METRIC)
}
CODE_METRICS: dict[str, SampleMetric] = {metric.name: metric for metric in corruption.METRICS}


def pair_metrics(names: Sequence[str]) -> list[PairMetric]:
    """The metrics of `names`, each once; UsageError for an unknown one or one of sets."""
    for name in _known(names):
        if name in SAMPLE_METRICS:
            raise UsageError(
                f"metric {name} compares sets of samples, not pairs: leave out --codes and --photos"
            )
        if name in CODE_METRICS:
            raise UsageError(f"metric {name} looks at codes alone: leave out --photos")
    return [PAIR_METRICS[name] for name in dict.fromkeys(names)]


def sample_metrics(names: Sequence[str]) -> list[SampleMetric]:
    """The metrics of `names`, each once; UsageError for an unknown one or one of pairs."""
    for name in _known(names):
        if name in PAIR_METRICS:
            raise UsageError(f"metric {name} compares pairs: give --codes and --photos")
        if name in CODE_METRICS:
            raise UsageError(f"metric {name} looks at codes: give --codes")
    return [SAMPLE_METRICS[name] for name in dict.fromkeys(names)]


def code_metrics(names: Sequence[str]) -> list[SampleMetric]:
    """The metrics of `names`, each once; UsageError for an unknown one or one that needs other inputs."""
    for name in _known(names):
        if name in PAIR_METRICS:
            raise UsageError(f"metric {name} compares pairs: --codes needs --photos too")
        if name in SAMPLE_METRICS:
            raise UsageError(f"metric {name} compares sets of samples: leave out --codes")
    return [CODE_METRICS[name] for name in dict.fromkeys(names)]


def _known(names: Sequence[str]) -> Sequence[str]:
    for name in names:
        known_names = [*PAIR_METRICS, *SAMPLE_METRICS, *CODE_METRICS]
        if name not in known_names:
            known = ", ".join(known_names)
            raise UsageError(f"metric {name!r}: expected one of {known}")
    return names
