"""Several processes that work on one run: prompts, samples and blocks are shared out, files are what they exchange.

Started by ``torchrun`` or ``accelerate launch``; they must see the same work folder. Every item's seed is its own, so
the result is the same whatever the number of ranks, and a rank that dies is resumed by starting the command again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

# Blocks of one rank may take hours longer than those of another.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether it does what is done once."""
        return self.rank == 0

    def takes(self, item: int) -> bool:
        """Whether item number `item` is this rank's."""
        return item % self.world == self.rank

    def wait(self) -> None:
        """Until every rank has come here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


def speaks() -> bool:
    """Whether this process is the one that prints, before or without joining the others."""
    return os.environ.get("RANK", "0") == "0"


def own_device(kind: str) -> str:
    """The device of this process, of those of a machine: `cuda:1` for the second where `kind` is `cuda`."""
    return f"{kind}:{os.environ['LOCAL_RANK']}" if kind == "cuda" and "LOCAL_RANK" in os.environ else kind


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that the launcher started; alone without one. Files are all they exchange, so gloo serves any device.

    Raises:
        ValueError: the launcher's variables are there only in part.
    """
    if "WORLD_SIZE" not in os.environ:
        yield Ranks()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"WORLD_SIZE is set, but {', '.join(missing)} is not: start s2q with torchrun or accelerate")
    import torch.distributed as dist

    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        if own:
            dist.destroy_process_group()
