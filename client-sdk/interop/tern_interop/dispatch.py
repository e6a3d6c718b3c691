"""Asks dispatch which edges to connect to: `POST https://DISPATCH/v1/dispatch`."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import List, NamedTuple, Sequence, Tuple

from .proto import dispatch as proto

TIMEOUT_S = 10
ANSWER_BYTES_LIMIT = 1 << 20


class Edge(NamedTuple):
    """An edge to connect to. `transports` are of "quic", "tcp", "ws" and "poll", in the order to try them."""

    id: str
    region: str
    host: str
    port: int
    tls_name: str
    transports: Tuple[str, ...]


class Edges(NamedTuple):
    """Edges, best first, and for how many seconds the list is good."""

    edges: List[Edge]
    ttl_s: int


class DispatchError(Exception):
    """Dispatch refused. `retry_after_s` is 0 where it said nothing."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


def split_address(address: str) -> Tuple[str, int]:
    """ "ip:port", with IPv6 addresses in brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def ask(address: str, ca: str, exclude: Sequence[str] = (), protobuf: bool = False) -> Edges:
    """Asks the dispatch at `address` ("host:port"), whose certificate must be signed by the CA in the file `ca`.

    Blocks for at most `TIMEOUT_S` a step. DispatchError on a refusal, OSError if it can't be reached or its certificate
    is not as it should be.
    """
    if protobuf:
        kind = "application/x-protobuf"
        question = proto.DispatchRequest(exclude=exclude).SerializeToString()
    else:
        kind = "application/json"
        question = json.dumps({"exclude": list(exclude)}).encode()
    host, port = split_address(address)
    context = ssl.create_default_context(cafile=ca)
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    try:
        connection.request("POST", "/v1/dispatch", question, {"Content-Type": kind, "Accept": kind})
        answer = connection.getresponse()
        body = answer.read(ANSWER_BYTES_LIMIT)
    finally:
        connection.close()
    if answer.status != 200:
        failure = _failure(body, protobuf)
        raise DispatchError(answer.status, *failure, int(answer.headers.get("Retry-After") or 0))
    return _from_protobuf(body) if protobuf else _from_json(body)


def _failure(body: bytes, protobuf: bool) -> Tuple[str, str]:
    if protobuf:
        failure = proto.DispatchFailure.FromString(body)
        return failure.code, failure.message
    error = json.loads(body)["error"]
    return error["code"], error["message"]


def _from_json(body: bytes) -> Edges:
    answer = json.loads(body)
    edges = []
    for edge in answer["edges"]:
        host, port = split_address(edge["addresses"][0])
        edges.append(Edge(edge["id"], edge["region"], host, port, edge["tls_name"], tuple(edge["transports"])))
    return Edges(edges, answer["ttl_s"])


def _from_protobuf(body: bytes) -> Edges:
    answer = proto.DispatchAnswer.FromString(body)
    edges = []
    for edge in answer.edges:
        host, port = split_address(edge.addresses[0])
        names = [proto.DispatchTransport.Name(t) for t in edge.transports]
        transports = tuple(name.rpartition("_")[2].lower() for name in names)
        edges.append(Edge(edge.id, edge.region, host, port, edge.tls_name, transports))
    return Edges(edges, answer.ttl_s)
