"""Peak memory of a piece of work, measured where that costs nothing.

On a GPU: the maximum of PyTorch's tensors (`torch.cuda.max_memory_allocated`), without
its cache and the driver's memory. Elsewhere: the resident memory of the whole
process, including Python and all loaded libraries; Linux can reset an earlier peak, other
systems report the peak since the start of the process. The record says which.
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

_MEBI = 2**20
GPU, PROCESS, LIFE = "gpu tensors", "process", "process, since its start"


def reset_peak(device: torch.device) -> bool:
    """Reset earlier peaks; returns whether that was possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def peak_memory(device: torch.device, fresh: bool = True) -> dict[str, Any]:
    """`peak_memory_mib` since `reset_peak`, and `peak_memory_of`: what was measured.

    fresh: the result of `reset_peak`. An empty dictionary if the system reports nothing.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        return {"peak_memory_mib": round(peak / _MEBI, 1), "peak_memory_of": GPU}
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        kibi = int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
        return {"peak_memory_mib": round(kibi / 1024, 1), "peak_memory_of": PROCESS if fresh else LIFE}
    with suppress(ImportError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used_bytes = used if sys.platform == "darwin" else used * 1024
        return {"peak_memory_mib": round(used_bytes / _MEBI, 1), "peak_memory_of": LIFE}
    return {}
