"""What accelerators this host has, as far as their drivers say. No driver is a normal answer, not an error."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One device. Memory in MiB."""

    name: str
    memory_mib: int
    free_mib: int


def nvidia() -> tuple[list[Accelerator], str]:
    """The NVIDIA devices, and why there are none ("" when there are). Never raises."""
    try:
        import pynvml
    except ImportError:
        return [], "the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        return [], f"no NVIDIA driver answers ({exc})"
    try:
        return [_device(pynvml, number) for number in range(pynvml.nvmlDeviceGetCount())], ""
    except pynvml.NVMLError as exc:
        return [], f"the NVIDIA driver failed ({exc})"
    finally:
        pynvml.nvmlShutdown()


def _device(pynvml: object, number: int) -> Accelerator:
    handle = pynvml.nvmlDeviceGetHandleByIndex(number)  # type: ignore[attr-defined]
    name = pynvml.nvmlDeviceGetName(handle)  # type: ignore[attr-defined]
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)  # type: ignore[attr-defined]
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return Accelerator(text, int(memory.total) // _MIB, int(memory.free) // _MIB)


def describe() -> list[str]:
    """One line per device, or one line saying why there is none."""
    devices, reason = nvidia()
    if not devices:
        return [f"none: {reason or 'the driver lists no device'}"]
    return [f"{device.name}, {device.memory_mib} MiB, {device.free_mib} MiB free" for device in devices]
