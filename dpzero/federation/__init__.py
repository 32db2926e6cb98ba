"""Federation by scalars: clients with rows of their own train one model, and a round moves 12 bytes up and 28 down.

A server and its clients hold the same base model. In each round the server asks the clients that its budget drew (or all,
if the clients add the noise) and sends them what they lack of the transcript. A client answers with its clipped slope
along the round's direction, which the public seed gives. The server releases the noisy sum over the expected number of
clients: the next row of the transcript. Base model and transcript are the model, so all hold the same bits.

    server -> client    step, count (uint32 each), count bytes of the transcript: 20 for each round since the last
    client -> server    step (uint32), slope over clip * 2^-40 (int64, as secure aggregation sums)

Privacy. The unit is the client, whatever rows it has: its value is the clipped mean slope of its rows. Noise is added once,
by a server that is trusted with the values (`Budget` with unit user; a client must agree, `Client(trusts_server=True)`), or
shared out among the clients, with a server that need not be trusted if it learns the sums alone (`SharedNoiseBudget`).
Secure aggregation, and encrypted and authenticated connections, are assumed, not implemented: this server reads each
client's term. So epsilon and `valid_release` of noise that is shared out are conditional, and header and statement say so:
`assumes: secure aggregation`. A client refuses settings that such noise does not have, and noise that takes more shares than
its owner relies on (`Client(relies_on=...)`). Who sees the traffic sees which clients are asked: with a `Budget` the
adversary of its epsilon sees the transcript alone.

Clients that drop out. A client that is away, leaves before it answers or answers late adds 0, which is within the clip, and
gets the rows that it lacks when it comes back. With a trusted server that costs no privacy, even if its own rows made it
leave, as long as other clients leave for no reason in its rows. With noise that is shared out its share is missing, and
the server sees who answers: nobody may then leave for a reason in private rows, and epsilon holds for rounds with enough
shares (see `privacy.shared_noise`). A client that lies can spoil the model, but no other client's privacy beyond its share.

The idea of training by seeds and scalars is that of FedKSeed (Qin et al., ICML 2024, arXiv 2312.06353), which has no noise,
takes several local steps along K candidate seeds in a round, and sends all K accumulated scalars.
"""

from __future__ import annotations

from .client import Client
from .server import Server

__all__ = ["Client", "Server"]
