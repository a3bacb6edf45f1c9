"""The cost of inverting a photograph: seconds and peak memory, from the code's record.

Protocol: seconds are the wall-clock time of its batch divided by the number of photographs in it,
without loading model and networks. Memory is that of the whole batch: on a GPU
PyTorch's tensors, elsewhere the resident memory of the whole process (engine/base/peak_memory.py).
Values are comparable only on the same machine, at the same `--batch`, with nothing else running.
"""

from wrangan_cli.engine.metrics.base import RecordMetric

METRICS = (
    RecordMetric("seconds", False, "wall-clock seconds of the batch over its photographs", "seconds"),
    RecordMetric(
        "peak-memory",
        False,
        "MiB of the whole batch: tensors on a GPU, elsewhere the whole process",
        "peak_memory_mib",
    ),
)
