"""The loops under torchrun: two processes over gloo do what one does, and outlive the death of one of them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nanochat import dataset, tinyworld
from nanochat.tokenizer import get_tokenizer
from scripts import tok_train

ROOT = Path(__file__).parent.parent


def losses_of(base_dir: Path, tag: str) -> list[float]:
    metrics = base_dir / "checkpoints" / "base" / tag / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def launch(base_dir: Path, ranks: int, *flags: str) -> None:
    """Run it to its end. torchrun leaves a folder among the temporary files at each start: it goes with the test's."""
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [*program, "-m", "scripts.base_train", "--device_type=cpu", "--depth=2", "--max_seq_len=64",
         "--total_batch_size=512", "--num_iterations=10", "--eval_every=0", "--sample_every=0", "--dtype=float32",
         "--data=two", *flags],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NANOCHAT_BASE_DIR": str(base_dir), "OMP_NUM_THREADS": "1", "TMPDIR": str(base_dir)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def documents_of(tokens: int, count: int) -> list[str]:
    """Different texts that are exactly `tokens` tokens long, so that each is one row behind its <|bos|>."""
    tokenizer, found = get_tokenizer(), []
    for text in dataset.iterate_documents("train", "tinyworld"):
        cut = tokenizer.decode(tokenizer.encode(text)[:tokens])
        if len(tokenizer.encode(cut)) == tokens:
            found.append(cut)
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} documents have {tokens} tokens")


@pytest.mark.slow
def test_two_processes_end_with_the_loss_of_one(base_dir: Path) -> None:
    """Two different documents in turn: one process reads both, of two processes each reads its own; a step is equal."""
    tinyworld.main(tinyworld.Config(megabytes=0.3))
    tok_train.main(tok_train.Config(vocab_size=500))
    dataset.write_shards(documents_of(64, 2) * 400, "two")
    launch(base_dir, 1, "--device_batch_size=4", "--model_tag=one")
    launch(base_dir, 2, "--device_batch_size=2", "--model_tag=two")
    one, two = losses_of(base_dir, "one"), losses_of(base_dir, "two")
    assert len(one) == 10
    assert one[-1] < one[0] - 1
    assert two == pytest.approx(one, abs=1e-4)


# --- a rank dies, several machines --------------------------------------------------------------------------------

FLAGS = [
    "--device_type=cpu",
    "--depth=1",
    "--max_seq_len=64",
    "--device_batch_size=2",
    "--total_batch_size=256",
    "--num_iterations=120",
    "--eval_every=0",
    "--sample_every=0",
    "--core_every=0",
    "--dtype=float32",
    "--compile=off",
    "--data=tinyworld",
]
SAVES = ["--save_every=10", "--keep_last=2", "--resume"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base directory with text and a tokenizer, in which two undisturbed ranks have trained the model "peace"."""
    folder = tmp_path_factory.mktemp("torchrun") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        tinyworld.main(tinyworld.Config(megabytes=0.3))
        tok_train.main(tok_train.Config(vocab_size=400))
        started = start(["--nproc_per_node=2"], "peace")
        assert started.wait(300) == 0, output_of("peace")
        yield folder


def start(torchrun_flags: list[str], tag: str) -> subprocess.Popen[bytes]:
    """Two ranks on this machine, and what they say in a file."""
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", *torchrun_flags]
    return launched([*program, "-m", "scripts.base_train", *SAVES, *FLAGS, f"--model_tag={tag}"], tag)


def launched(program: list[str], log: str, **variables: str) -> subprocess.Popen[bytes]:
    base = os.environ["NANOCHAT_BASE_DIR"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": base, **variables}
    with (Path(base) / f"{log}.log").open("ab") as said:
        return subprocess.Popen(program, cwd=ROOT, stdout=said, stderr=said, env=environment)


def output_of(log: str) -> str:
    return (Path(os.environ["NANOCHAT_BASE_DIR"]) / f"{log}.log").read_text(encoding="utf-8")


def kill_rank(rank: int, agents: list[subprocess.Popen[bytes]], base_dir: Path, tag: str) -> None:
    """SIGKILL, once the run has logged 35 steps."""
    metrics = base_dir / "checkpoints" / "base" / tag / "metrics.jsonl"
    while not metrics.exists() or len(losses_of(base_dir, tag)) < 35:
        assert all(agent.poll() is None for agent in agents), tag
        time.sleep(0.01)
    workers = [worker for agent in agents for worker in psutil.Process(agent.pid).children()]
    [process] = [worker for worker in workers if worker.environ().get("RANK") == str(rank)]
    process.send_signal(signal.SIGKILL)


def same_end(base_dir: Path, tag: str, other: str) -> None:
    """Weights and optimizer after the last step, and all losses, to the last bit."""
    folders = [base_dir / "checkpoints" / "base" / name / "step_000120" for name in (tag, other)]
    for name in ("model.safetensors", "optim.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    assert losses_of(base_dir, tag) == losses_of(base_dir, other)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_ends_the_run_within_thirty_seconds(prepared: Path, rank: int) -> None:
    tag = f"dead{rank}"
    agent = start(["--nproc_per_node=2"], tag)
    kill_rank(rank, [agent], prepared, tag)
    assert agent.wait(30) != 0, output_of(tag)
    assert not [
        child for child in psutil.process_iter(["cmdline"]) if f"--model_tag={tag}" in (child.info["cmdline"] or [])
    ]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_torchrun_starts_again_after_a_death_and_comes_to_the_same_bits(prepared: Path) -> None:
    agent = start(["--nproc_per_node=2", "--max-restarts=1"], "risen")
    kill_rank(1, [agent], prepared, "risen")
    assert agent.wait(300) == 0, output_of("risen")
    assert "beginning anew" in output_of("risen")
    assert "going on from" in output_of("risen")
    same_end(prepared, "risen", "peace")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_all_ranks_stop_at_the_same_step_when_torchrun_is_asked_to(prepared: Path) -> None:
    agent = start(["--nproc_per_node=2"], "asked")
    metrics = prepared / "checkpoints" / "base" / "asked" / "metrics.jsonl"
    while not metrics.exists() or len(losses_of(prepared, "asked")) < 35:
        assert agent.poll() is None, output_of("asked")
        time.sleep(0.01)
    agent.terminate()
    agent.wait(60)
    assert "stopped, saved" in output_of("asked")
    assert "Traceback" not in output_of("asked").split("stopped, saved")[0]
    runs = prepared / "checkpoints" / "base"
    shutil.copytree(runs / "asked", runs / "fewer")
    agent = start(["--nproc_per_node=2"], "asked")
    assert agent.wait(300) == 0, output_of("asked")
    same_end(prepared, "asked", "peace")
    agent = start(["--nproc_per_node=1"], "fewer")  # other batches from here on, of the same size
    assert agent.wait(300) == 0, output_of("fewer")
    peace, fewer = losses_of(prepared, "peace"), losses_of(prepared, "fewer")
    assert len(fewer) == 120
    assert fewer[:35] == peace[:35]
    assert sum(fewer[-20:]) == pytest.approx(sum(peace[-20:]), rel=0.1)


Machines = list[tuple[list[str], dict[str, str]]]  # what a command begins with there, and the variables it needs


@pytest.fixture
def loopback() -> Machines:
    """This machine twice."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return [([], {"HEAD": f"127.0.0.1:{port}", "LOCAL_ADDR": "127.0.0.1"})] * 2


@pytest.fixture
def namespaces() -> Iterator[Machines]:
    """Two network namespaces with a cable between them: each has its own loopback and sees the other one's address."""
    names, cards = ([f"{kind}{os.getpid()}{end}" for end in "ab"] for kind in ("nano", "nc"))

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no network namespaces here: {done.stderr.strip()}")

    if shutil.which("ip") is None:
        pytest.skip("no network namespaces here: there is no command `ip`")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cards[0], "netns", names[0], "type", "veth", "peer", "name", cards[1], "netns", names[1])
        for number, (name, card) in enumerate(zip(names, cards, strict=True), start=1):
            ip("-n", name, "addr", "add", f"10.99.0.{number}/24", "dev", card)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", card, "up")
        yield [
            (
                ["ip", "netns", "exec", name],
                {"HEAD": "10.99.0.1:29511", "LOCAL_ADDR": f"10.99.0.{number}", "GLOO_SOCKET_IFNAME": card},
            )
            for number, (name, card) in enumerate(zip(names, cards, strict=True), start=1)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def start_on(machines: Machines, tag: str, **variables: str) -> list[subprocess.Popen[bytes]]:
    """The recipe on each of two machines, one rank on each."""
    recipe = ["bash", "runs/multinode.sh", *FLAGS, f"--model_tag={tag}", "--save_every=10"]
    told = {"NODES": "2", "GPUS": "1", "PYTHON": sys.executable, **variables}
    return [
        launched([*before, *recipe], f"{tag}{number}", **told, **own) for number, (before, own) in enumerate(machines)
    ]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("where", ["loopback", "namespaces"])
def test_two_machines_train_as_one_with_two_ranks(prepared: Path, where: str, request: pytest.FixtureRequest) -> None:
    """Two torchruns, each with one rank, started by the recipe."""
    for number, machine in enumerate(start_on(request.getfixturevalue(where), where)):
        assert machine.wait(300) == 0, output_of(f"{where}{number}")
    same_end(prepared, where, "peace")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("rank", [0, 1])
def test_two_machines_start_again_after_a_death_on_one_of_them(prepared: Path, loopback: Machines, rank: int) -> None:
    tag = f"twice{rank}"
    machines = start_on(loopback, tag, RESTARTS="1")
    kill_rank(rank, machines, prepared, tag)
    for number, machine in enumerate(machines):
        assert machine.wait(300) == 0, output_of(f"{tag}{number}")
    assert "going on from" in output_of(f"{tag}0") + output_of(f"{tag}1")
    same_end(prepared, tag, "peace")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_recipe_for_several_machines_says_what_it_needs() -> None:
    bare = {name: value for name, value in os.environ.items() if name not in ("NODES", "HEAD")}
    done = subprocess.run(
        ["bash", "runs/multinode.sh", "--depth=26"], cwd=ROOT, capture_output=True, text=True, check=False, env=bare
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "NODES=2 HEAD=node1:29500 bash runs/multinode.sh" in done.stderr


@pytest.mark.skipif(shutil.which("bash") is None or os.name == "nt", reason="needs bash")
def test_the_slurm_script_starts_the_recipe_on_every_machine_of_the_job(tmp_path: Path) -> None:
    """With a scontrol and an srun that stand in for Slurm's: what they are asked, and with which variables."""
    for name, lines in {
        "scontrol": 'echo "node7"; echo "node8"; echo "$*" >&2',
        "srun": 'echo "$HEAD $NODES $GPUS $RUN_ID"; echo "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": "12345",
           "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "PATH": f"{tmp_path}:{os.environ['PATH']}"}  # fmt: skip
    done = subprocess.run(
        ["bash", "runs/slurm.sh", "--depth=26"], cwd=ROOT, capture_output=True, text=True, check=True, env=job
    )
    assert done.stderr == "show hostnames node[7-8]\n"
    assert done.stdout == "node7:22345 2 8 12345\n--kill-on-bad-exit=1 bash runs/multinode.sh --depth=26\n"
    assert (ROOT / "runs" / "multinode.sh").is_file()
