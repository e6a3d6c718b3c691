"""A user's devices: which are connected, and how one of them is removed."""

from __future__ import annotations

from tern_interop.ids import own_log_id
from tern_interop.proto import wire

from .deployment import Deployment
from .waiting import acked

KIND_CELL = 20
KICKED = 34


async def connected_devices_are_listed(at: Deployment) -> str:
    user = at.user("alice")
    phone, laptop = at.device(user), at.device(user)
    await at.connect(phone)
    await at.connect(laptop)

    answer = await phone.ask(wire.Frame(pull_devices=wire.PullDevices()))
    listed = {device.install: device.region_name for device in answer.devices.devices}
    assert listed == {phone.me.install: "eu", laptop.me.install: "eu"}, listed
    return f"{len(listed)} in eu"


async def a_removed_device_is_ended_and_not_let_in_again(at: Deployment) -> str:
    user = at.user("alice")
    phone, lost = at.device(user), at.device(user)
    await at.connect(phone)
    await at.connect(lost)
    assert phone.session is not None and phone.session.welcome is not None
    log = own_log_id(phone.session.welcome.direct_salt, user)
    value = wire.KickCell(reason="it was stolen").SerializeToString()
    cell = wire.Cell(key="kick/" + lost.me.install, value=value)
    await phone.send_kind(log, KIND_CELL, cell.SerializeToString(), peer=user)
    await acked(phone)
    closed = await lost.until(lambda: lost.closed, "to be ended")
    assert closed is not None and closed.code == KICKED, closed
    await lost.disconnect()
    try:
        await at.connect(lost)
    except ConnectionRefusedError as error:
        assert error.args[0] == KICKED, error
        return f"code {KICKED}"
    raise AssertionError("was let in again")
