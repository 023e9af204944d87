"""The machine of a process: what it takes, what it refuses, what it restores; and two that talk to each other."""

import json
import platform
import random
from pathlib import Path

import numpy
import psutil
import pytest
import torch
from tiny import CPU
from two_ranks import results

from nanochat import hardware
from nanochat import runtime as room
from nanochat.command import UserError
from nanochat.runtime import Runtime, pick_dtype, random_states, restore_random_states


@pytest.mark.parametrize(
    ("device_type", "dtype", "message"),
    [
        ("tpu", "auto", "--device_type=tpu is unknown; allowed are cuda, mps, cpu"),
        ("cuda", "auto", "--device_type=cuda is not on this machine; present: cpu"),
        ("cpu", "float16", "--dtype=float16 is unknown; allowed are auto, float32, bfloat16"),
    ],
)
def test_what_the_machine_does_not_have_is_refused_in_one_sentence(
    device_type: str, dtype: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_present", lambda: ["cpu"])
    with pytest.raises(UserError) as refused, Runtime.start(device_type, dtype):
        pass
    assert str(refused.value) == message


def test_a_process_without_a_gpu_of_its_own_is_told_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun with more processes than GPUs used to end in torch's "invalid device ordinal"."""
    monkeypatch.setattr(room, "_present", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="local rank 2 has no GPU of its own: this machine has 2"), Runtime.start():
        pass


def test_the_best_device_is_taken_when_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert room.autodetect_device_type() == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert room.autodetect_device_type() == "cpu"


def test_start_gives_a_single_main_rank_and_the_threads_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    with Runtime.start("cpu", "float32", threads=1) as runtime:
        assert (runtime.device.type, runtime.dtype, runtime.rank, runtime.world_size) == ("cpu", torch.float32, 0, 1)
        assert runtime.is_main
        assert runtime.sum_over_ranks(1.5, 2.0) == [1.5, 2.0]
        assert runtime.gather_objects("a") == ["a"]
        assert torch.get_num_threads() == 1
        assert runtime.peak_memory_bytes() > 1 << 20
        runtime.barrier()
        runtime.synchronize()
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("asked", "world_size", "expected"), [(None, 1, 6), (None, 4, 1), ("2", 1, 2), ("4,2", 1, 6), ("1", 3, 2)]
)
def test_cores_are_shared_out_and_omp_num_threads_is_obeyed_where_torchrun_did_not_set_it(
    asked: str | None, world_size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "available_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *named, **values: None)
    with Runtime.start("cpu"):
        assert taken == [expected]


@pytest.mark.parametrize(
    ("device", "fast", "expected"),
    [("cpu", True, torch.bfloat16), ("cpu", False, torch.float32), ("mps", True, torch.float32)],
)
def test_auto_is_bfloat16_only_where_it_is_fast(
    device: str, fast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_cpu_multiplies_bfloat16", lambda: fast)
    assert pick_dtype("auto", torch.device(device)) == expected
    assert pick_dtype("bfloat16", torch.device(device)) == torch.bfloat16


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("GenuineIntel", "fpu avx512_bf16 amx_bf16", True),
        ("GenuineIntel", "fpu avx512_bf16 avx512_fp16", False),  # AMX hidden: bfloat16 is the slower one
        ("AuthenticAMD", "fpu avx2 avx512_bf16", True),
        ("AuthenticAMD", "fpu avx2", False),
    ],
)
def test_a_cpu_is_asked_whether_it_multiplies_bfloat16_fast(
    vendor: str, flags: str, fast: bool, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cores = [f"processor\t: {core}\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n" for core in range(2)]
    cpuinfo.write_text("\n".join(cores), encoding="utf-8")
    assert room._cpu_multiplies_bfloat16(cpuinfo) == fast
    assert not room._cpu_multiplies_bfloat16(tmp_path / "missing")


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), torch.bfloat16), ((7, 5), torch.float32)])
def test_auto_on_cuda_follows_the_generation(
    capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_dtype("auto", torch.device("cuda", 0)) == expected


def draws() -> tuple[float, float, float]:
    return random.gauss(), float(numpy.random.normal()), float(torch.randn(()))


def test_random_states_survive_json_and_continue_every_generator() -> None:
    draws()  # an odd number of normal deviates: the generators keep the second of a pair
    states = json.loads(json.dumps(random_states(CPU)))
    expected = [draws() for _ in range(3)]
    restore_random_states(states, CPU)
    assert [draws() for _ in range(3)] == expected


def test_the_seed_decides_every_generator() -> None:
    drawn = []
    for seed in (1, 1, 2):
        with Runtime.start("cpu", seed=seed, threads=1):
            drawn.append(draws())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[1], drawn[2], strict=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_between_what_is_left_can_be_given_back() -> None:
    held = [bytes(numpy.ones(60_000, numpy.uint8)) for _ in range(2000)]
    del held[1::2], held[1::2], held[1::2]  # one in eight is left
    before = psutil.Process().memory_info().rss
    room.give_back_freed_memory()
    assert before - psutil.Process().memory_info().rss > 50e6
    assert len(held) == 250


def test_two_ranks_sum_and_gather() -> None:
    for found in results():
        assert found["sums"] == [3.0, 2e-9]
        assert found["objects"] == [{"rank": 0}, {"rank": 1}]
