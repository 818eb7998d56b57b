"""A Hub on loopback: enough of the protocol that the real clients cannot tell, and faults on demand.

    client --HF_ENDPOINT--> http://127.0.0.1:PORT   the Hub: accounts, repos, commits, branches, PRs
                       \\--> http://localhost:PORT2   its storage: another origin, which must never see a token

    wire.py      requests and replies            accounts.py  who may do what
    store.py     repos, commits, trees, refs     faults.py    503, 429, dropped connections, lost replies
    api.py       /api/...                        metadata.py  what the Hub asks of a model card's YAML
    files.py     resolve, LFS, storage           xet.py       the same bytes as chunks, xorbs and shards
    server.py    two HTTP servers around these   client.py    runs client code in a process of its own

Everything is kept under one folder, every byte that a client sends too, so that a test can look for a token in it.
"""

from hub.client import ClientFailure, HubClient
from hub.faults import Fault
from hub.server import HubServer

__all__ = ["ClientFailure", "Fault", "HubClient", "HubServer"]
