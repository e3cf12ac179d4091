"""The store over which a trial's ranks meet, on the loopback interface if all of them are on one node.

torch.distributed's own store listens on all interfaces of the node and asks for no password, and what ranks put into it
are pickles: anybody who can connect could run code as this user. On several nodes it has to listen on the network.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from launcher.train.ranks import Ranks

_ADDRESS = "127.0.0.1"
_store: Any = None  # it lives as long as this process


def host(ranks: Ranks) -> None:
    """On one node: rank 0 hosts the store on MASTER_PORT, and all ranks find it there. Call it before ranks connect.

    torch.distributed connects to a store that somebody else hosts if TORCHELASTIC_USE_AGENT_STORE is set, as torchrun
    does. Older versions also read the restart count.
    """
    global _store
    if ranks.nodes > 1 or "TORCHELASTIC_USE_AGENT_STORE" in os.environ:
        return
    os.environ.update(MASTER_ADDR=_ADDRESS, TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    if ranks.rank == 0:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        listener = socket.create_server((_ADDRESS, int(os.environ["MASTER_PORT"])))
        _store = TCPStore(
            _ADDRESS, listener.getsockname()[1], ranks.world_size, is_master=True, wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )  # fmt: skip
