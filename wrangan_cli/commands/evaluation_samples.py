"""What `wrangan evaluate` does for samples: compare the features of generated and of real images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from wrangan_cli.commands.evaluation import rate_callback
from wrangan_cli.commands.shell import Results, by_main, progress
from wrangan_cli.engine.base.errors import WranganError

if TYPE_CHECKING:
    from wrangan_cli.engine.metrics.base import CodeMetric, SampleMetric
    from wrangan_cli.engine.metrics.samples import Reference
    from wrangan_cli.engine.metrics.sampling import Network, Samples
    from wrangan_cli.engine.models.folder import Model


@dataclass(frozen=True)
class SampleInputs:
    """The files from which samples are made, and with which they are compared."""

    codes: Path | None
    """Render at moved w with the weights of these codes; None: samples of random z."""
    reference: Path | None
    """Real images; None: the features stored with the model."""
    save_reference: Path | None
    """Where to write the features of `reference`."""


def evaluate_samples(
    results: Results, model: "Model", names: Sequence[str], inputs: SampleInputs, samples: "Samples"
) -> None:
    """Compare generated images with real ones, once for each feature network."""
    from wrangan_cli.engine.metrics.registry import code_metrics, sample_metrics
    from wrangan_cli.engine.metrics.sampling import by_network
    from wrangan_cli.engine.models.codes import find_codes, load_code

    folder, known = inputs.codes, code_metrics if inputs.codes else sample_metrics
    if folder is None:
        _evaluate_layers(results, model, names, samples)
    elif known(names):
        codes = by_main(lambda: [load_code(path, model) for path in find_codes(folder)])
        samples = replace(samples, codes=codes)
    for network, some in by_network(names).items():
        metrics = known(some)
        save = inputs.save_reference if network == "inception" else None
        if metrics or save is not None:
            _evaluate_with(results, model, metrics, replace(inputs, save_reference=save), samples, network)


def _evaluate_with(
    results: Results,
    model: "Model",
    metrics: "Sequence[SampleMetric | CodeMetric]",
    inputs: SampleInputs,
    samples: "Samples",
    network: str,
) -> None:
    from wrangan_cli.engine.base.distributed import is_main, local_shard
    from wrangan_cli.engine.metrics.samples import model_reference
    from wrangan_cli.engine.metrics.samples import save_reference as save
    from wrangan_cli.engine.metrics.sampling import estimates, load_network

    wanted_by = ", ".join(metric.name for metric in metrics) or "reference features"
    load = cache(lambda: load_network(network, model.device, wanted_by))
    by_main(lambda: bool(load()))
    if inputs.reference is None:
        real = by_main(lambda: model_reference(model))
    else:
        real = reference_of(results, model, inputs.reference, load(), samples.batch, network=network)
        if inputs.save_reference is not None:
            path = inputs.save_reference
            by_main(lambda: save(path, real))
            if is_main():
                results.wrote(path, count=len(real.features), resolution=real.resolution)
    if not metrics:
        return
    with progress("sampling", len(local_shard(range(samples.count)))) as bar:
        generated = samples.features(model, load(), rate_callback(bar))
    if not is_main():
        return
    codes = samples.codes
    for metric, estimate in estimates(metrics, generated, real, len(codes or [])):
        if isinstance(estimate, WranganError):
            results.failed(estimate)
            continue
        spread = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.2g}"
        counts = f"{samples.count} samples, {len(real.features)} of {real.source}"
        if codes is not None:
            counts = f"{len(codes)} codes, {counts}"
        results.record(
            f"{metric.name}  {estimate.value:.6g}{spread}  {counts}  ({metric.protocol})",
            metric=metric.name,
            value=estimate.value,
            standard_error=estimate.standard_error,
            samples=samples.count,
            reference_count=len(real.features),
            reference=real.source,
            resolution=model.sample_side,
            **({"epsilon": samples.epsilon} if codes is None else {"codes": len(codes)}),
            seed=samples.seed,
            higher_is_better=metric.higher_is_better,
            protocol=metric.protocol,
            model=model.name,
        )


def _evaluate_layers(results: Results, model: "Model", names: Sequence[str], samples: "Samples") -> None:
    from wrangan_cli.engine.base.distributed import is_main
    from wrangan_cli.engine.metrics.registry import layer_metrics

    if not is_main():
        return
    for metric in layer_metrics(names):
        counts = f", {samples.count} samples" if metric.renders else ""
        for part, value in metric.compute(model, samples.count, samples.seed, samples.batch).items():
            results.record(
                f"{metric.name}  {part}  {value:.6g}  ({metric.protocol}{counts})",
                metric=metric.name,
                **{metric.of: part},
                value=value,
                **({"samples": samples.count, "seed": samples.seed} if metric.renders else {}),
                protocol=metric.protocol,
                model=model.name,
            )


def reference_of(
    results: Results,
    model: "Model",
    path: Path,
    features: "Network",
    batch: int,
    alone: bool = False,
    network: str = "inception",
) -> "Reference":
    """The features of the images of `--reference`; broken images are reported. network: name of `features`.

    Under torchrun every process must call this, unless `alone` is set: then this one does all the work.
    """
    from wrangan_cli.engine.base.distributed import is_main, local_shard
    from wrangan_cli.engine.data.image_sets import default_cache_dir, load_image_set
    from wrangan_cli.engine.metrics.sampling import reference_features

    load = cache(lambda: load_image_set([path], model.sample_side, default_cache_dir()))
    if not alone:
        by_main(lambda: bool(load()))
    images = load()
    if is_main():
        for name, cause in zip(images.broken, images.causes, strict=True):
            results.failed(f"{name}: {cause}; left out of the reference", path)
    with progress("reference", len(images if alone else local_shard(images.names))) as bar:
        return reference_features(
            images, path, features, network, batch, default_cache_dir(), rate_callback(bar), sharded=not alone
        )
