"""Cores and memory from control groups, GPU tables, and the facts of this machine."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from nanochat import hardware


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def many_cores(monkeypatch: pytest.MonkeyPatch, count: int = 64) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)), raising=False)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cgroup/cpu.max": "max 100000"}, 64),
        ({"cgroup/cpu.max": "400000 100000"}, 4),
        ({"cgroup/cpu.max": "50000 100000"}, 1),
        ({"cgroup/cpu.max": "250000 100000"}, 2),
        ({"cgroup/a/cpu.max": "800000 100000", "cgroup/a/b/cpu.max": "max 100000", "own": "0::/a/b\n"}, 8),
        ({"cgroup/a/cpu.max": "200000 100000", "own": "0::/other\n"}, 64),
        ({"cgroup/cpu/cpu.cfs_quota_us": "300000", "cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cgroup/cpu/cpu.cfs_quota_us": "-1", "cgroup/cpu/cpu.cfs_period_us": "100000"}, 64),
        (
            {
                "cgroup/cpu/d/cpu.cfs_quota_us": "300000",
                "cgroup/cpu/d/cpu.cfs_period_us": "100000",
                "own": "4:cpu:/d\n",
            },
            3,
        ),
    ],
)
def test_cores_are_no_more_than_any_control_group_above_allows(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_cores(monkeypatch)
    tree(tmp_path, files)
    assert hardware.available_cores(tmp_path / "cgroup", tmp_path / "own") == cores


def test_cores_are_no_more_than_the_process_is_bound_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many_cores(monkeypatch, 3)
    tree(tmp_path, {"cpu.max": "900000 100000"})
    assert hardware.available_cores(tmp_path, tmp_path / "none") == 3


def test_memory_is_what_the_control_group_leaves_and_file_pages_can_be_dropped(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {"memory.max": "1000000", "memory.current": "600000", "memory.stat": "anon 1\ninactive_file 200000\nfile 5"},
    )
    assert hardware.available_memory_bytes(tmp_path, tmp_path / "none") == 600000
    assert hardware.total_memory_bytes(tmp_path, tmp_path / "none") == 1000000


def test_memory_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    tree(tmp_path, {"memory.max": "max", "memory.current": "5"})
    assert hardware.total_memory_bytes(tmp_path, tmp_path / "none") == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX A1000", None),
        ("Some Future GPU", None),
        ("", None),
    ],
)
def test_peak_flops_are_known_by_the_devices_name(name: str, flops: float | None) -> None:
    assert hardware.peak_flops(name) == flops


def test_an_unknown_gpu_has_no_price() -> None:
    assert hardware.dollars_per_hour("NVIDIA H100 80GB HBM3") == 3.0
    assert hardware.dollars_per_hour("Some Future GPU") is None


def test_gpus_are_those_that_the_process_may_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_output", lambda *program: "NVIDIA H200\nNVIDIA H200\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.gpu_names() == ["NVIDIA H200"] * 2
    for visible, count in (("1", 1), ("", 0), ("-1", 0), ("0,1", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert len(hardware.gpu_names()) == count


def test_a_missing_or_failing_program_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware._output("no-such-program-here") == ""
    assert hardware._output("python3", "-c", "print('x'); raise SystemExit(1)") == ""

    def hangs(*arguments: object, **options: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert hardware._output("python3", "-c", "print('x')") == ""


def test_the_facts_of_this_machine_are_all_said() -> None:
    facts = hardware.describe()
    assert set(facts) >= {"cpu", "cores", "memory_bytes", "gpu", "platform", "python", "git_commit"}
    assert facts["cpu"]
    assert 1 <= int(facts["cores"]) <= (os.cpu_count() or 1)
    assert 0 < hardware.available_memory_bytes() <= psutil.virtual_memory().total
