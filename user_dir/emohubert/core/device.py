"""Where a model runs and in which precision. Importing this does not import torch: programs check their options first."""

import contextlib
from pathlib import Path

from .errors import InputError
from .parallel import one_thread

CPUINFO = Path("/proc/cpuinfo")


def autocast(device, precision):
    """Context of reduced precision; none for float32."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def check_precision(precision, device):
    """Raise InputError where the hardware cannot do `precision` at speed."""
    if precision == "bf16" and not has_bf16(device):
        raise InputError(f"--precision {precision}: {device} has no bf16 arithmetic; use --precision float32")


def has_bf16(device):
    """Whether a device multiplies bf16 matrices faster than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" in (torch.backends.cpu.get_cpu_capability() + _cpu_flags()).lower()


def _cpu_flags():
    return CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else ""


@contextlib.contextmanager
def exact_arithmetic(device):
    """One core per operation on a CPU; full float32 on a GPU, where TF32 has three digits."""
    import torch

    with contextlib.ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
            stack.callback(setattr, torch.backends.cuda.matmul, "allow_tf32", torch.backends.cuda.matmul.allow_tf32)
            torch.backends.cuda.matmul.allow_tf32 = False
        else:
            stack.enter_context(one_thread())
        yield


def choose_device(name):
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:N`; InputError if the name is unknown or there is no such GPU."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: unknown device; use auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} GPUs; use --device auto or cpu")
    return chosen
