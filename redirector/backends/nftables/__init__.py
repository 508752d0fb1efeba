"""The nftables backend: our own codec over AF_NETLINK. `wire` numbers and attributes, `rules` rules ↔ expressions,
`encode` steps → messages, `decode` dumps → Program, `backend` the socket and the transaction."""
