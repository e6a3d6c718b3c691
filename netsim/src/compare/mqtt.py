"""A messenger over MQTT with the stock client library: QoS 1, a session that outlives connections, keepalive 30 s.

Orders come on standard input, what happens goes to standard output, a JSON object a line (see told.rs).
"""

import json
import socket
import sys
import threading
import time

import paho.mqtt.client as mqtt

KEEPALIVE_S = 30
CONNECT_WITHIN_S = 20
BACK_OFF_S = (1, 30)

set_up = json.loads(sys.stdin.readline())
lock = threading.Lock()
seen = set()
names = {}
live = False


def tell(what, message=None):
    told = {"at_ns": time.monotonic_ns() - set_up["zero_ns"], "what": what}
    if message is not None:
        told["message"] = message
    with lock:
        print(json.dumps(told), flush=True)


def on_socket_open(client, userdata, sock):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def on_connect(client, userdata, flags, reason, properties):
    global live
    if reason.is_failure:
        print(f"refused: {reason}", file=sys.stderr, flush=True)
        return
    if not flags.session_present:
        client.subscribe(f"inbox/{set_up['user']}", qos=1)
    live = True
    tell("live")


def on_disconnect(client, userdata, flags, reason, properties):
    global live
    print(f"disconnected: {reason}", file=sys.stderr, flush=True)
    if live:
        live = False
        tell("lost")


def on_message(client, userdata, message):
    name = message.payload.decode().split(" ")[0]
    # QoS 1 is at least once.
    if name not in seen:
        seen.add(name)
        tell("shown", name)


def on_publish(client, userdata, mid, reason, properties):
    name = names.pop(mid, None)
    if name is not None:
        tell("acked", name)


client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2, client_id=set_up["device"], clean_session=False, reconnect_on_failure=True
)
client.tls_set(ca_certs=set_up["roots"])
client.max_queued_messages_set(0)
client.reconnect_delay_set(*BACK_OFF_S)
client.connect_timeout = CONNECT_WITHIN_S
client.on_socket_open = on_socket_open
client.on_connect = on_connect
client.on_disconnect = on_disconnect
client.on_message = on_message
client.on_publish = on_publish
host, port = set_up["server"].rsplit(":", 1)
client.connect_async(host, int(port), keepalive=KEEPALIVE_S)
client.loop_start()

for line in sys.stdin:
    order = json.loads(line)
    # The library has no way to be told of another network.
    if "send" in order:
        text = order["send"]["text"]
        tell("sent", text.split(" ")[0])
        # Its ack may come before the number is known here only if this thread sleeps for a round trip.
        info = client.publish(f"inbox/{order['send']['to']}", text, qos=1)
        names[info.mid] = text.split(" ")[0]
