"""A messenger over XMPP with the stock client library: stream management (XEP-0198) with resumption, an ack asked for
after each stanza, TLS from the first byte, a ping every 30 s (XEP-0199).

Orders come on standard input, what happens goes to standard output, a JSON object a line (see told.rs).
"""

import asyncio
import json
import logging
import sys
import threading
import time

import slixmpp

DOMAIN = "tern.test"
PASSWORD = "compare"
PING_EVERY_S = 30
PONG_WITHIN_S = 10
CONNECT_WITHIN_S = 30

logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
set_up = json.loads(sys.stdin.readline())


def tell(what, message=None):
    told = {"at_ns": time.monotonic_ns() - set_up["zero_ns"], "what": what}
    if message is not None:
        told["message"] = message
    print(json.dumps(told), flush=True)


def name_of(text):
    return text.split(" ")[0]


class Messenger(slixmpp.ClientXMPP):
    def __init__(self):
        super().__init__(f"{set_up['user']}@{DOMAIN}/{set_up['device']}", PASSWORD)
        self.register_plugin("xep_0198", {"window": 1})
        self.register_plugin(
            "xep_0199", {"keepalive": True, "interval": PING_EVERY_S, "timeout": PONG_WITHIN_S}
        )
        self.ca_certs = set_up["roots"]
        self.enable_starttls = False
        self.live = False
        self.seen = set()
        # What its server has not acknowledged; the stanzas' own queue does not outlive a session.
        self.pending = {}
        self.attempt = 0
        self.add_event_handler("session_start", self.started)
        self.add_event_handler("session_resumed", self.resumed)
        self.add_event_handler("disconnected", self.gone)
        self.add_event_handler("message", self.heard)
        self.add_event_handler("stanza_acked", self.acked)

    def go(self):
        host, port = set_up["server"].rsplit(":", 1)
        self.attempt += 1
        self.connect(host, int(port))
        self.loop.call_later(CONNECT_WITHIN_S, self.watch, self.attempt)

    def watch(self, attempt):
        """Kernels and libraries wait for minutes; nobody else does."""
        if attempt == self.attempt and not self.live:
            self.cancel_connection_attempt()
            if self.transport:
                # It tells that it is gone.
                self.abort()
            else:
                self.go()

    def started(self, event):
        self.send_presence()
        self.now_live()
        for text, to in list(self.pending.values()):
            self.write(text, to)

    def resumed(self, event):
        self.now_live()

    def now_live(self):
        if not self.live:
            self.live = True
            tell("live")

    def gone(self, reason):
        print(f"disconnected: {reason}", file=sys.stderr, flush=True)
        if self.live:
            self.live = False
            tell("lost")
        self.go()

    def heard(self, message):
        name = name_of(message["body"])
        if message["type"] in ("chat", "normal") and name not in self.seen:
            self.seen.add(name)
            tell("shown", name)

    def acked(self, stanza):
        if isinstance(stanza, slixmpp.Message) and self.pending.pop(name_of(stanza["body"]), None):
            tell("acked", name_of(stanza["body"]))

    def write(self, text, to):
        self.send_message(mto=f"{to}@{DOMAIN}", mbody=text, mtype="chat")

    def order(self, order):
        # The library has no way to be told of another network.
        if "send" in order:
            text, to = order["send"]["text"], order["send"]["to"]
            tell("sent", name_of(text))
            self.pending[name_of(text)] = (text, to)
            if self.live or self.plugin["xep_0198"].sm_id:
                self.write(text, to)


def read(messenger):
    for line in sys.stdin:
        messenger.loop.call_soon_threadsafe(messenger.order, json.loads(line))
    messenger.loop.call_soon_threadsafe(messenger.loop.stop)


asyncio.set_event_loop(asyncio.new_event_loop())
messenger = Messenger()
messenger.go()
threading.Thread(target=read, args=(messenger,), daemon=True).start()
messenger.loop.run_forever()
