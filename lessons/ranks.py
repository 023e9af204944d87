"""Several processes that talk to each other (gloo, CPU), started by one: for lesson 18.

    found = run("my_file.py", "work", 2, "any", "arguments")

calls `work(rank, world_size, "any", "arguments")` of my_file.py in each of two processes and gives what they returned.
"""

import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from nanochat.command import UserError


def run(path: str | Path, function: str, world_size: int, *arguments: object, seconds: float = 120.0) -> list[object]:
    """What each rank's call returned, in the order of ranks. Raises UserError with the words of a rank that fails."""
    with TemporaryDirectory() as folder:
        order = Path(folder) / "order"
        order.write_bytes(pickle.dumps((str(path), function, world_size, arguments)))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "lessons.ranks", folder, str(rank)],
                env=environment,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
            for rank in range(world_size)
        ]
        try:
            told = [rank.communicate(timeout=seconds)[1] for rank in ranks]
        except subprocess.TimeoutExpired as late:
            raise UserError(
                f"{function} of {world_size} ranks was not done after {seconds:g} seconds: does every rank take part "
                "in every send, receive and sum, in the same order?"
            ) from late
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        results = [Path(folder) / f"result{rank}" for rank in range(world_size)]
        failed = [rank for rank, result in enumerate(results) if not result.exists()]
        if failed:
            # a rank whose neighbour fell breaks off too, later and with the words of the network
            words = min((told[rank].strip() for rank in failed), key=lambda text: "gloo" in text.lower())
            raise UserError(f"{function} failed on rank {' and '.join(map(str, failed))}:\n{words}")
        return [pickle.loads(result.read_bytes()) for result in results]


def _main(folder: str, rank: int) -> None:
    import torch.distributed as dist

    path, function, world_size, arguments = pickle.loads((Path(folder) / "order").read_bytes())
    specification = importlib.util.spec_from_file_location("work_of_ranks", path)
    assert specification is not None, f"{path} is no Python file"
    assert specification.loader is not None, f"{path} is no Python file"
    module = importlib.util.module_from_spec(specification)
    sys.modules["work_of_ranks"] = module
    specification.loader.exec_module(module)
    meeting = (Path(folder) / "meeting").absolute().as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    result = getattr(module, function)(rank, world_size, *arguments)
    part = Path(folder) / f"part{rank}"
    part.write_bytes(pickle.dumps(result))
    part.rename(Path(folder) / f"result{rank}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
