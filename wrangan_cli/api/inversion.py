"""Photographs → codes."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wrangan_cli.api.models import ModelLike, model_of
from wrangan_cli.api.pictures import Face, P, Picture, Progress, as_list, prepared
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.base.freed_memory import keep_freed_memory
from wrangan_cli.engine.inversion.folder import described
from wrangan_cli.engine.inversion.inverter import Inverter as Engine
from wrangan_cli.engine.inversion.many import BATCH, invert_many
from wrangan_cli.engine.inversion.many import Progress as Steps
from wrangan_cli.engine.inversion.method_settings import applicable, inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model


class Inverter:
    """Model, encoder and loss, loaded once to invert many photographs.

    model: see `load_model`; None: the default. options: those of `wrangan invert`, such as
    `method="weight-tuning"`, `steps=100` or `seconds=30` (for each photograph). settings: made from such
    options by `inversion_settings`; `options` take precedence over them. batch: number of photographs
    inverted together.

    Raises WranganError: options that do not exist or conflict, networks that the model lacks,
    missing weights of the perceptual distance. From then on, on Linux, the process keeps freed memory for
    later use, which makes the steps faster.
    """

    def __init__(
        self,
        model: ModelLike | None = None,
        settings: InversionSettings | None = None,
        *,
        batch: int = BATCH,
        **options: Any,
    ) -> None:
        if batch < 1:
            raise UsageError(f"batch {batch}: expected 1 or more")
        keep_freed_memory()  # as the command does: otherwise a step takes several times as long
        self.batch = batch
        self._engine = Engine.load(model_of(model), _settings(settings, options))

    @property
    def model(self) -> Model:
        """The model."""
        return self._engine.model

    @property
    def settings(self) -> InversionSettings:
        """All settings, including those that the model names."""
        return self._engine.settings

    @overload
    def invert(
        self, images: str | Path | Image.Image | NDArray[np.uint8] | Face, progress: Progress | None = None
    ) -> Code: ...
    @overload
    def invert(self, images: list[P] | tuple[P, ...], progress: Progress | None = None) -> list[Code]: ...
    @overload
    def invert(self, images: Tensor, progress: Progress | None = None) -> Code | list[Code]: ...
    def invert(self, images: Any, progress: Progress | None = None) -> Code | list[Code]:
        """The code of one picture, or a list of codes for several: see `wrangan.invert`."""
        pictures, several = as_list(images)
        codes: list[Code] = []
        for result in self.each(pictures, progress):
            if not isinstance(result, Code):
                raise result
            codes.append(result)
        return codes if several else codes[0]

    def each(
        self, images: Iterable[Picture], progress: Progress | None = None
    ) -> Iterator[Code | WranganError | OSError]:
        """The code of each picture in turn, as soon as its batch is done.

        A picture that cannot be read, or whose values stop being finite, yields its error in place of a code;
        the others are not affected. Files are read when needed. Consecutive pictures of equal side are
        inverted together; a batch that does not fit into memory is tried again at half its size.
        progress: called with the number of steps done, and the total.
        """
        given, _ = as_list(images)
        sources = [_source(picture) for picture in given]
        photos = prepared(given, self.model.resolution, self.settings.size)
        early: dict[int, Code | WranganError | OSError] = {}
        expected = 0

        def on_progress(steps: Steps) -> None:
            if progress is not None:
                progress(steps.done, steps.total)

        for found in invert_many(self._engine, photos, self.batch, on_progress):
            code = found.code
            if isinstance(code, Code):
                try:
                    code = described(code, sources[found.index], found.seconds, found.cost)
                except OSError as error:  # its file has disappeared since it was read
                    code = error
            early[found.index] = code
            # An unreadable file comes before the batch to which it would have belonged.
            while expected in early:
                yield early.pop(expected)
                expected += 1


@overload
def invert(
    images: str | Path | Image.Image | NDArray[np.uint8] | Face,
    model: ModelLike | None = None,
    settings: InversionSettings | None = None,
    *,
    batch: int = BATCH,
    progress: Progress | None = None,
    **options: Any,
) -> Code: ...
@overload
def invert(
    images: list[P] | tuple[P, ...],
    model: ModelLike | None = None,
    settings: InversionSettings | None = None,
    *,
    batch: int = BATCH,
    progress: Progress | None = None,
    **options: Any,
) -> list[Code]: ...
@overload
def invert(
    images: Tensor,
    model: ModelLike | None = None,
    settings: InversionSettings | None = None,
    *,
    batch: int = BATCH,
    progress: Progress | None = None,
    **options: Any,
) -> Code | list[Code]: ...
def invert(
    images: Any,
    model: ModelLike | None = None,
    settings: InversionSettings | None = None,
    *,
    batch: int = BATCH,
    progress: Progress | None = None,
    **options: Any,
) -> Code | list[Code]:
    """Invert photographs: find the codes from which the model reproduces them.

    images: one of the following, or a list, for which a list of codes is returned:
    a file (str or Path), a Pillow image of any mode, an array (H, W, 3) of uint8 in RGB, a floating-point
    tensor (3, S, S) in [-1, 1], or a face from `align`. A tensor (B, 3, S, S) counts as a list of B images.
    The central square is used; faces should be aligned as in the model's data (`align`).

    model: see `load_model`; None: the default, loaded on first use and kept. options: those of
    `wrangan invert`, such as `method="pti"`, `size=256`, `seconds=30`. settings: made from such options by
    `inversion_settings`; `options` take precedence over them. Without `steps` or `seconds`, the number of
    steps is the one that the model's record recommends (400 on `ffhq`); 0 gives the code from which the
    method starts. batch: number of photographs inverted together. progress: called with the number of steps
    done, and the total.

    Each code holds w, the offsets of the weights, and in `info` the settings, the seconds, and the distortion
    before and after. Raises WranganError for a picture that cannot be used or fitted, and for wrong settings;
    to continue with the other pictures, use `Inverter.each`.
    """
    inverter = Inverter(model, settings, batch=batch, **options)
    result: Code | list[Code] = inverter.invert(images, progress)
    return result


def _settings(settings: InversionSettings | None, options: dict[str, Any]) -> InversionSettings:
    if settings is None:
        return inversion_settings(**options)
    known = dataclasses.asdict(settings)
    # For another method than that of `settings`: those that both have.
    kept = applicable(options.get("method", settings.method), known)
    return inversion_settings(**{**kept, **options})


def _source(picture: Picture) -> Path | None:
    return Path(picture) if isinstance(picture, str | Path) else None
