"""PTI's published code as a process that takes steps on request; `gpu_inversion` starts it.

    python -m tests.benchmarks.gpu_pti --pti PATH --nvidia PATH --resolution 256 --device cuda

PATH: checkouts of danielroich/PTI and of NVlabs/stylegan2-ada-pytorch; of the latter only
training/networks.py is used, the network in PTI's pickles, whose code PTI does not contain.
A step is that of PTI's SingleIDCoach: its `forward`, `calc_loss` and `configure_optimizers`, called as in
its loop, with the compiled NVIDIA operations of PTI's torch_utils. Weights are random. Modules that a step
does not use (wandb, the e4e encoder, logs) are replaced by empty stand-ins.

Each line of stdin is a number of steps; the answer is a line of JSON: seconds, peak_bytes, nvidia_ops.
"""

import argparse
import importlib
import importlib.util
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    """Answer each line of stdin."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pti", type=Path, required=True)
    parser.add_argument("--nvidia", type=Path, required=True)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--channel-base", type=int, default=32768, help="32768 is width 2")
    parser.add_argument("--channel-max", type=int, default=512)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # since PTI's code prints
    device = torch.device(options.device)
    torch.manual_seed(0)
    coach, take = prepared(options, device)
    take(2)  # compiles the operations
    del coach
    print(json.dumps({"ready": True, "nvidia_ops": compiled()}), file=answers, flush=True)
    for line in sys.stdin:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        take(int(line))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        answer = {"seconds": seconds, "peak_bytes": peak, "nvidia_ops": compiled()}
        print(json.dumps(answer), file=answers, flush=True)


def prepared(options: argparse.Namespace, device: torch.device) -> tuple[Any, Any]:
    """PTI's coach for one random image, and a function that takes a number of its steps."""
    sys.path.insert(0, str(options.pti))
    for name in ("wandb", "models.e4e.psp", "utils.log_utils"):
        stand_in(name, pSp=None, log_image_from_w=None, log_images_from_w=None)
    for name in ("requests", "tqdm"):
        if importlib.util.find_spec(name) is None:
            stand_in(name, tqdm=iter)
    settings: Any = importlib.import_module("configs.global_config")
    settings.device = str(device)
    coach_class = importlib.import_module("training.coaches.single_id_coach").SingleIDCoach
    networks = module_at("nvidia_networks", options.nvidia / "training" / "networks.py")
    lpips = importlib.import_module("lpips")
    coach = coach_class.__new__(coach_class)
    coach.use_wandb = False
    # fp16 does not matter: PTI renders in float32 (force_fp32).
    shape = {"channel_base": options.channel_base, "channel_max": options.channel_max}
    network = networks.Generator(
        z_dim=512,
        c_dim=0,
        w_dim=512,
        img_resolution=options.resolution,
        img_channels=3,
        synthesis_kwargs=shape,
    )
    coach.G = network.to(device).eval().float()
    kind = importlib.import_module("configs.hyperparameters").lpips_type
    coach.lpips_loss = (
        lpips.LPIPS(net=kind, pretrained=False, pnet_rand=True, verbose=False).to(device).eval()
    )
    optimizer = coach.configure_optimizers()
    image = torch.rand(1, 3, options.resolution, options.resolution, device=device) * 2 - 1
    w = torch.randn(1, coach.G.mapping.num_ws, 512, device=device)
    threshold = importlib.import_module("configs.hyperparameters").LPIPS_value_threshold

    def take(steps: int) -> None:
        for _ in range(steps):
            loss, _, distance = coach.calc_loss(coach.forward(w), image, "", coach.G, True, w)
            optimizer.zero_grad()
            bool(distance <= threshold)  # its loop checks this, and would stop here
            loss.backward()
            optimizer.step()

    return coach, take


def stand_in(name: str, **contents: Any) -> None:
    """Install a module of this name with only these contents."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(contents)


def compiled() -> bool:
    """Whether NVIDIA's compiled operations are in use."""
    operations = [sys.modules.get(f"torch_utils.ops.{name}") for name in ("upfirdn2d", "bias_act")]
    return all(module is not None and module._plugin is not None for module in operations)


def module_at(name: str, path: Path) -> Any:
    """Import a single file as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
