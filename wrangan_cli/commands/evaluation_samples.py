"""What `wrangan evaluate` does for samples: features of generated and of real images, and what they say."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wrangan_cli.commands.evaluation import rated
from wrangan_cli.commands.shell import Results, by_main, progress
from wrangan_cli.engine.base.errors import WranganError

if TYPE_CHECKING:
    from wrangan_cli.engine.metrics.samples import Reference
    from wrangan_cli.engine.models.folder import Model


@dataclass(frozen=True)
class Samples:
    """Which images are generated: of random z, or of codes at moved w."""

    codes: Path | None
    count: int
    seed: int
    batch: int
    epsilon: float


def evaluate_samples(
    results: Results,
    model: "Model",
    names: Sequence[str],
    reference: Path | None,
    save_reference: Path | None,
    plan: Samples,
) -> None:
    """Generated images against real ones, once for each network whose features are wanted."""
    from wrangan_cli.engine.metrics.registry import SAMPLE_METRICS

    of_vgg16 = [n for n in names if n in SAMPLE_METRICS and SAMPLE_METRICS[n].network == "vgg16"]
    others = [name for name in names if name not in of_vgg16]
    if others or save_reference is not None:
        _evaluate_with(results, model, others, reference, save_reference, plan, "inception")
    if of_vgg16:
        _evaluate_with(results, model, of_vgg16, reference, None, plan, "vgg16")


def _evaluate_with(
    results: Results,
    model: "Model",
    names: Sequence[str],
    reference: Path | None,
    save_reference: Path | None,
    plan: Samples,
    network: str,
) -> None:
    from wrangan_cli.engine.base.distributed import is_main, own_share
    from wrangan_cli.engine.metrics import inception as networks
    from wrangan_cli.engine.metrics import vgg16
    from wrangan_cli.engine.metrics.base import CodeMetric, SampleMetric
    from wrangan_cli.engine.metrics.corruption import moved_images
    from wrangan_cli.engine.metrics.registry import code_metrics, sample_metrics
    from wrangan_cli.engine.metrics.samples import generated_features, model_reference, shared_features
    from wrangan_cli.engine.metrics.samples import save_reference as save
    from wrangan_cli.engine.models.codes import find_codes, load_code

    of_samples = sample_metrics(names) if plan.codes is None else []
    of_codes = [] if plan.codes is None else code_metrics(names)
    metrics: list[SampleMetric | CodeMetric] = [*of_samples, *of_codes]
    if plan.codes is not None and not metrics:
        return
    if plan.codes is None:
        _evaluate_layers(results, model, names, plan)
        if not metrics and save_reference is None:
            return
    folder = plan.codes
    if folder is not None:
        found = by_main(lambda: [load_code(path, model) for path in find_codes(folder)])
    load_network = vgg16.load_vgg16 if network == "vgg16" else networks.load_inception
    load = cache(lambda: load_network(model.device, wanted_by=", ".join(names) or "reference features"))
    by_main(lambda: bool(load()))
    inception = load()
    if reference is None:
        real = by_main(lambda: model_reference(model))
    else:
        real = reference_of(results, model, reference, inception, plan.batch, network=network)
        if save_reference is not None:
            by_main(lambda: save(save_reference, real))
            if is_main():
                results.wrote(save_reference, count=len(real.features), resolution=real.resolution)
    if not metrics:
        return
    share = own_share(range(plan.count))
    with progress("sampling", len(share)) as bar:
        if plan.codes is None:
            generated = generated_features(
                model, inception, plan.count, plan.seed, plan.batch, plan.epsilon, rated(bar)
            )
        else:
            images = moved_images(model, found, share, plan.seed, plan.batch)
            generated = shared_features(inception, images, rated(bar))
    if not is_main():
        return
    for metric in metrics:
        try:
            if isinstance(metric, CodeMetric):
                estimate = metric.compute(generated, real.features, len(found))
            else:
                estimate = metric.compute(generated, real.features)
        except WranganError as error:
            results.failed(error)
            continue
        spread = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.2g}"
        counts = f"{plan.count} samples, {len(real.features)} of {real.source}"
        if plan.codes is not None:
            counts = f"{len(found)} codes, {counts}"
        results.record(
            f"{metric.name}  {estimate.value:.6g}{spread}  {counts}  ({metric.protocol})",
            metric=metric.name,
            value=estimate.value,
            standard_error=estimate.standard_error,
            samples=plan.count,
            reference_count=len(real.features),
            reference=real.source,
            resolution=model.sample_side,
            **({"epsilon": plan.epsilon} if plan.codes is None else {"codes": len(found)}),
            seed=plan.seed,
            higher_is_better=metric.higher_is_better,
            protocol=metric.protocol,
            model=model.name,
        )


def _evaluate_layers(results: Results, model: "Model", names: Sequence[str], plan: Samples) -> None:
    from wrangan_cli.engine.base.distributed import is_main
    from wrangan_cli.engine.metrics.registry import layer_metrics

    if not is_main():
        return
    for metric in layer_metrics(names):
        counts = f", {plan.count} samples" if metric.draws else ""
        for part, value in metric.compute(model, plan.count, plan.seed, plan.batch).items():
            results.record(
                f"{metric.name}  {part}  {value:.6g}  ({metric.protocol}{counts})",
                metric=metric.name,
                **{metric.of: part},
                value=value,
                **({"samples": plan.count, "seed": plan.seed} if metric.draws else {}),
                protocol=metric.protocol,
                model=model.name,
            )


def reference_of(
    results: Results,
    model: "Model",
    path: Path,
    inception: Any,
    batch: int,
    alone: bool = False,
    network: str = "inception",
) -> "Reference":
    """Features of the images of `--reference` by a network, which `network` names; broken ones are named.

    Of several processes all must call this, unless `alone` says that this one does all of it.
    """
    from wrangan_cli.engine.base.distributed import is_main, own_share
    from wrangan_cli.engine.base.weights import INCEPTION, TORCHVISION_VGG
    from wrangan_cli.engine.data.image_sets import default_cache_dir, load_image_set
    from wrangan_cli.engine.metrics.samples import Reference, image_set_features

    load = cache(lambda: load_image_set([path], model.sample_side, default_cache_dir()))
    if not alone:
        by_main(lambda: bool(load()))
    images = load()
    if is_main():
        for name, cause in zip(images.broken, images.causes, strict=True):
            results.failed(f"{name}: {cause}; left out of the reference", path)
    share = images.names if alone else own_share(images.names)
    with progress("reference", len(share)) as bar:
        features = image_set_features(
            images,
            inception,
            batch,
            default_cache_dir(),
            rated(bar),
            shared=not alone,
            network=TORCHVISION_VGG if network == "vgg16" else INCEPTION,
        )
    return Reference(features, path.name, model.sample_side)
