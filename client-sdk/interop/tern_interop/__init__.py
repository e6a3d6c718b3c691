"""A client of tern, written from docs/PROTOCOL.md and the proto files alone.

In reading order: `ids` (what things are called and how places are ordered), `frames` (lengths, lanes, references),
`dispatch` (finding an edge), `store` and `outbox` (what a client keeps), `sending` and `receiving` (the rules),
`session` (one connection's life, without input or output), `transport` and `quic` (bytes), `client` (ties them).

`session` and what it uses never read a clock and do no input or output but the local store: the time is an argument.
"""
