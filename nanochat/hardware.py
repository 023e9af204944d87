"""What machine this is, without torch: cores and memory that may be used, its processor and GPUs, speeds and prices.

Starting a device is `runtime`'s business.

Lesson: lessons/17_one_gpu
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")

# Dense bfloat16 matmul FLOPs per second with float32 accumulation, from the makers' data sheets (half of the figures
# "with sparsity"). The first pattern that occurs in the device's name counts, so the narrower ones stand first.
PEAK_FLOPS: dict[str, float] = {
    r"laptop|max-q|mobile": 0.0,
    r"\bgb200\b|\bgb300\b": 2.5e15,
    r"\bb200\b|\bb300\b": 2.25e15,
    r"\bb100\b": 1.75e15,
    r"\bh20\b": 148e12,
    r"\bh200 nvl\b": 836e12,
    r"\bh200\b|\bgh200\b": 989e12,
    r"\bh100 nvl\b": 835e12,
    r"\bh100 pcie\b": 756e12,
    r"\bh100\b|\bh800\b": 989e12,
    r"\ba100\b|\ba800\b": 312e12,
    r"\ba40\b": 149.7e12,
    r"\ba30\b": 165e12,
    r"\ba10\b": 125e12,
    r"\ba10g\b": 70e12,
    r"\bl40s\b": 362e12,
    r"\bl40\b": 181e12,
    r"\bl4\b": 121e12,
    r"rtx 6000 ada": 364.2e12,
    r"rtx pro 6000": 503.8e12,
    r"rtx a6000": 154.8e12,
    r"rtx 5090": 209.5e12,
    r"rtx 5080": 112.6e12,
    r"rtx 4090": 165.2e12,
    r"rtx 4080": 97.5e12,
    r"rtx 3090 ti": 80e12,
    r"rtx 3090": 71e12,
    r"\bmi355x?\b": 2.5e15,
    r"\bmi325x?\b|\bmi300x?\b": 1307.4e12,
    r"\bmi250x\b": 383e12,
    r"\bmi250\b": 362.1e12,
}

# Rough on-demand prices of clouds in 2026, US dollars per GPU and hour: an order of magnitude, edit to yours.
DOLLARS_PER_HOUR: dict[str, float] = {
    r"laptop|max-q|mobile": 0.0,
    r"\bb200\b": 5.5,
    r"\bh200\b": 3.5,
    r"\bgh200\b": 2.0,
    r"\bh100\b": 3.0,
    r"\ba100\b": 1.8,
    r"\bl40s\b": 1.2,
    r"\bl4\b": 0.8,
    r"\ba10g?\b": 0.8,
    r"rtx a6000": 0.8,
    r"rtx 5090": 0.9,
    r"rtx 4090": 0.6,
    r"rtx 3090": 0.3,
    r"\bv100\b": 0.55,
    r"\bt4\b": 0.4,
    r"\bmi300x\b": 3.0,
}


def peak_flops(device_name: str) -> float | None:
    """The device's dense bfloat16 FLOPs per second, as its maker states them; None when the name is not known."""
    return _look_up(PEAK_FLOPS, device_name)


def dollars_per_hour(device_name: str) -> float | None:
    """What one such GPU costs to rent; None when the name is not known."""
    return _look_up(DOLLARS_PER_HOUR, device_name)


def _look_up(table: dict[str, float], name: str) -> float | None:
    words = re.sub(r"[-_]", " ", name.lower())
    return next((value for pattern, value in table.items() if re.search(pattern, words)), None) or None


def available_cores(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> int:
    """Cores that this process may use: those it is bound to, and no more than its control group's quota of time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = []
    for folder in _cgroup_folders(root, membership):
        fields = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(fields) == 2 and fields[0].isdigit() and int(fields[1]) > 0:
            quotas.append(int(fields[0]) / int(fields[1]))
    # half a core more would only be throttled, so a broken quota is rounded down
    return max(1, int(min([bound, *quotas])))


def total_memory_bytes(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> int:
    """Memory of the machine, or what the control group allows of it."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_limits(root, membership))])


def available_memory_bytes(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> int:
    """Memory that can still be taken without swapping: the machine's, and what the control group leaves."""
    import psutil

    left = [max(limit - used, 0) for limit, used in _memory_limits(root, membership)]
    return min([psutil.virtual_memory().available, *left])


def _memory_limits(root: Path, membership: Path) -> list[tuple[int, int]]:
    """Limit and use in bytes of every control group that has a limit; file pages that can be dropped are no use."""
    found = []
    for folder in _cgroup_folders(root, membership):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if limit and used and limit[0].isdigit() and used[0].isdigit():
            stat = _words(folder / "memory.stat")
            droppable = int(stat[stat.index("inactive_file") + 1]) if "inactive_file" in stat else 0
            found.append((int(limit[0]), int(used[0]) - droppable))
    return found


def _cgroup_folders(root: Path, membership: Path) -> list[Path]:
    """This process's control groups, with all above them: version 2 in one tree, version 1 in one per resource."""
    folders = []
    for line in _lines(membership):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for tree in [root / name for name in controllers.split(",")] if controllers else [root]:
            inside = tree / path.lstrip("/")
            folders += [inside, *(parent for parent in inside.parents if parent.is_relative_to(tree))]
    # in a container the path may be the host's; the root of what is mounted is then the own group
    return list(dict.fromkeys([*folders, root, root / "cpu", root / "memory"]))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def cpu_model() -> str:
    """The processor's name."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware") and value.strip():
            return value.strip()
    if sys.platform == "darwin" and (name := _output("sysctl", "-n", "machdep.cpu.brand_string")):
        return name
    return platform.processor() or platform.machine() or "unknown"


def gpu_names() -> list[str]:
    """The names of the NVIDIA GPUs that this process may use, by `nvidia-smi`; empty without one."""
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = names[: len([device for device in visible.split(",") if device.strip() not in ("", "-1")])]
    return [name.strip() for name in names if name.strip()]


def git_facts() -> dict[str, str]:
    """Commit, branch and whether files were changed, of the sources that are running; "unknown" outside git."""
    commit = _output("git", "rev-parse", "--short=12", "HEAD") or "unknown"
    branch = _output("git", "rev-parse", "--abbrev-ref", "HEAD") or "unknown"
    changed = "unknown" if commit == "unknown" else ("yes" if _output("git", "status", "--porcelain") else "no")
    return {"git_commit": commit, "git_branch": branch, "git_changed_files": changed}


def _output(*program: str) -> str:
    """What a program prints, run in the repository; empty when it is missing or fails."""
    if shutil.which(program[0]) is None:
        return ""
    try:
        done = subprocess.run(
            program,
            capture_output=True,
            text=True,
            timeout=20,
            cwd=Path(__file__).parent,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def describe() -> dict[str, str | int | float]:
    """The facts of this machine and these sources, as the report keeps them."""
    gpus = gpu_names()
    return {
        "cpu": cpu_model(),
        "cores": available_cores(),
        "memory_bytes": total_memory_bytes(),
        "gpu": gpus[0] if gpus else "none",
        "gpu_count": len(gpus),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **git_facts(),
    }


def peak_memory_bytes() -> int:
    """The most memory that this process has held in RAM; what it holds now where the system keeps no record."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().rss)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
