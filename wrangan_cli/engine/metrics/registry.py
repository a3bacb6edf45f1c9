"""All metrics by name."""

from collections.abc import Mapping, Sequence

from wrangan_cli.engine.base.errors import UsageError, expected_one_of
from wrangan_cli.engine.metrics import (
    consistency,
    corruption,
    drift,
    edit_success,
    fid,
    identity,
    kid,
    layer_influence,
    lpips,
    ms_ssim,
    mse,
    precision,
    psnr,
    recall,
    recorded,
    separability,
    std_share,
)
from wrangan_cli.engine.metrics.base import CodeMetric, LayerMetric, PairMetric, RecordMetric, SampleMetric
from wrangan_cli.engine.models.folder import Model

PAIR_METRICS: dict[str, PairMetric] = {
    metric.name: metric
    for metric in (mse.METRIC, psnr.METRIC, ms_ssim.METRIC, *lpips.METRICS, identity.METRIC)
}
RECORD_METRICS: dict[str, RecordMetric] = {metric.name: metric for metric in recorded.METRICS}
SAMPLE_METRICS: dict[str, SampleMetric] = {
    metric.name: metric
    for metric in (
        *(fid.METRIC, kid.METRIC, precision.METRIC, recall.METRIC),
        *(precision.VGG16_METRIC, recall.VGG16_METRIC),
    )
}
CODE_METRICS: dict[str, CodeMetric] = {metric.name: metric for metric in corruption.METRICS}
LAYER_METRICS: dict[str, LayerMetric] = {
    metric.name: metric for metric in (std_share.METRIC, layer_influence.METRIC)
}
ATTRIBUTE_METRICS: dict[str, LayerMetric] = {separability.METRIC.name: separability.METRIC}
FACE_METRICS = {corruption.FACE: corruption.FACE_PROTOCOL}
DRIFT_METRICS = {drift.NAME: drift.PROTOCOL}
PEOPLE_METRICS = {edit_success.NAME: edit_success.PROTOCOL}

_BOTH = "give --codes and --photos"
_CODES = "give --codes, and no --photos"
_NEITHER = "leave out --codes and --photos"
_NEEDS: dict[str, tuple[Mapping[str, object], str, str]] = {
    "pairs": (PAIR_METRICS, "compares pairs", _BOTH),
    "records": (RECORD_METRICS, "applies to pairs", _BOTH),
    "samples": (SAMPLE_METRICS, "compares sets of samples", _NEITHER),
    "codes": (CODE_METRICS, "measures codes alone", _CODES),
    "faces": (FACE_METRICS, "measures codes alone", _CODES),
    "drift": (DRIFT_METRICS, "measures codes alone", _CODES),
    "edited": (consistency.NAMES, "measures codes alone", _CODES),
    "people": (PEOPLE_METRICS, "edits and compares", _BOTH),
    "layers": (LAYER_METRICS, "measures a model's layers", _NEITHER),
    "attributes": (ATTRIBUTE_METRICS, "measures a model's attributes", _NEITHER),
}
"""Kind → its metrics, what they do, and the options of `wrangan evaluate` that they need."""


_OF_PAIRS = ("pairs", "records", "people")
_OF_CODES = ("codes", "edited", "faces", "drift")
_ALONE = ("samples", "layers", "attributes")


def default_pair_metrics(model: Model) -> list[str]:
    """The default metrics of pairs."""
    return ["mse", "psnr", "ms-ssim", model.perceptual]


def check_pair_metrics(names: Sequence[str]) -> None:
    """UsageError for a metric that is neither of pairs nor recorded in codes; it mentions no options."""
    for name in names:
        if name in PAIR_METRICS or name in RECORD_METRICS:
            continue
        kind = _kind_of(name)
        if kind is None:
            raise UsageError(f"metric {name!r}: {expected_one_of(name, (*PAIR_METRICS, *RECORD_METRICS))}")
        raise UsageError(f"metric {name} {_NEEDS[kind][1]}: it is measured by the command `wrangan evaluate`")


def pair_metrics(names: Sequence[str]) -> list[PairMetric]:
    """The metrics among `names` that compare images; those of the codes' records and edit success may be
    present.

    As in all of these functions, each name counts once; UsageError for an unknown name or one of another
    kind.
    """
    return [PAIR_METRICS[name] for name in _of_kind(names, *_OF_PAIRS) if name in PAIR_METRICS]


def record_metrics(names: Sequence[str]) -> list[RecordMetric]:
    """The metrics among `names` that codes record; metrics of pairs may be present."""
    return [RECORD_METRICS[name] for name in _of_kind(names, *_OF_PAIRS) if name in RECORD_METRICS]


def sample_metrics(names: Sequence[str]) -> list[SampleMetric]:
    """The metrics among `names` that compare sets of samples; metrics of layers and attributes may be
    present."""
    return [SAMPLE_METRICS[name] for name in _of_kind(names, *_ALONE) if name in SAMPLE_METRICS]


def layer_metrics(names: Sequence[str]) -> list[LayerMetric]:
    """The metrics among `names` that measure layers or attributes; metrics of samples may be present."""
    known = {**LAYER_METRICS, **ATTRIBUTE_METRICS}
    return [known[name] for name in _of_kind(names, *_ALONE) if name in known]


def code_metrics(names: Sequence[str]) -> list[CodeMetric]:
    """The metrics among `names` that compare images of moved codes; others of codes alone may be present."""
    return [CODE_METRICS[name] for name in _of_kind(names, *_OF_CODES) if name in CODE_METRICS]


def face_metrics(names: Sequence[str]) -> list[str]:
    """The metrics among `names` that detect faces in images of moved codes."""
    return [name for name in _of_kind(names, *_OF_CODES) if name in FACE_METRICS]


def edited_metrics(names: Sequence[str]) -> dict[str, str]:
    """The metrics among `names` that edit and invert again, with their descriptions."""
    return {n: consistency.NAMES[n] for n in _of_kind(names, *_OF_CODES) if n in consistency.NAMES}


def _of_kind(names: Sequence[str], *kinds: str) -> list[str]:
    """`names`, each once."""
    for name in names:
        kind = _kind_of(name)
        if kind is None:
            everything = [name for known, _, _ in _NEEDS.values() for name in known]
            raise UsageError(f"metric {name!r}: {expected_one_of(name, everything)}")
        if kind not in kinds:
            raise UsageError(f"metric {name} {': '.join(_NEEDS[kind][1:])}")
    return list(dict.fromkeys(names))


def _kind_of(name: str) -> str | None:
    return next((kind for kind, (known, _, _) in _NEEDS.items() if name in known), None)
