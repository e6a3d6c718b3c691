//! What users do: on any of their devices, connected or not.

use super::*;
use crate::client::{Erased, GroupOptions, Message};
use crate::membership::Role;

const USERS: [&str; 4] = ["alice", "bob", "carol", "dan"];
/// Devices that are added on the way.
const LATE: usize = 3;

impl Run {
    /// Four users with five devices, near all three regions.
    pub(super) fn cast() -> Vec<(&'static str, &'static str)> {
        vec![("alice", "phone"), ("alice", "tablet"), ("bob", "phone"), ("carol", "phone"), ("dan", "phone")]
    }

    pub(super) fn someone(&mut self) -> usize {
        let present: Vec<usize> = (0..self.devices.len()).filter(|i| !self.devices[*i].kicked).collect();
        self.pick(&present).unwrap()
    }

    fn somebody(&mut self) -> UserId {
        user(self.pick(&USERS).unwrap())
    }

    fn groups(&self, i: usize) -> Vec<ConvId> {
        let all = self.devices[i].machine.conversations();
        all.filter(|c| c.peer.is_none()).map(|c| c.id).collect()
    }

    /// All that a list shows.
    fn conversations(&self, i: usize) -> Vec<ConvId> {
        let machine = &self.devices[i].machine;
        let own = machine.own_log();
        machine.conversations().map(|c| c.id).filter(|id| *id != own).collect()
    }

    fn some_message(&mut self, i: usize) -> Option<Message> {
        let conversations = self.conversations(i);
        let id = self.pick(&conversations)?;
        let all = self.devices[i].book.timeline(id, 0, usize::MAX);
        let at = if all.is_empty() { return None } else { self.rng.random_range(0..all.len()) };
        Some(all[at].clone())
    }

    pub(super) fn write(&mut self, i: usize) {
        let now = self.world.now;
        let body = format!("{}{i}-{}", self.devices[i].user, self.written + 1);
        let known = self.conversations(i);
        let id = match self.pick(&known) {
            Some(id) if self.mix.people && self.rng.random_bool(0.8) => id,
            _ => {
                let peer = if self.mix.people {
                    self.somebody()
                } else {
                    user(if self.devices[i].user == "alice" { "bob" } else { "alice" })
                };
                self.devices[i].machine.direct(&peer)
            }
        };
        // Who has left a group is refused at once.
        if self.devices[i].machine.send(now, id, 0, Bytes::from(body.clone()), 0).is_ok() {
            self.written += 1;
            self.note(format!("{i} writes {body} to {id:?}"));
        }
        self.steps(i, false);
    }

    /// The application drops what was refused, so that nothing waits behind it.
    pub(super) fn drop_failed(&mut self, i: usize) {
        let now = self.world.now;
        for out in self.devices[i].book.image().outgoing {
            if matches!(out.record.state, MessageState::Failed(_)) {
                let device = &mut self.devices[i];
                if device.machine.discard(now, out.record.id).is_ok() {
                    let by = Identity { user: user(device.user), install: out.record.install, n: out.record.n };
                    self.note(format!("{i} drops {by:?} of {:?}", out.record.conversation));
                    self.refused.insert((out.record.conversation, by, out.kind));
                }
            }
        }
    }

    fn change_a_group(&mut self, i: usize) {
        let now = self.world.now;
        let groups = self.groups(i);
        let (who, what) = (self.somebody(), self.rng.random_range(0..20));
        let flag = self.rng.random_bool(0.5);
        let Some(id) = self.pick(&groups) else { return };
        let title = format!("title {}", self.rng.random_range(0..1_000));
        let machine = &mut self.devices[i].machine;
        let done = match what {
            0..7 => ("adds", machine.group_add(now, id, std::slice::from_ref(&who), flag, 0)),
            7..12 => ("removes", machine.group_remove(now, id, std::slice::from_ref(&who), 0)),
            12..14 => ("leaves", machine.group_leave(now, id, 0)),
            14..18 => (
                "gives a role to",
                machine.group_role(now, id, &who, [Role::Member, Role::Admin][usize::from(flag)], 0),
            ),
            _ => ("titles", machine.group_title(now, id, &title, 0)),
        };
        if let (what, Ok(message)) = done {
            self.note(format!("{i} {what} {who} in {id:?}: {message}"));
        }
    }

    fn new_group(&mut self, i: usize) {
        let now = self.world.now;
        let members: Vec<UserId> = USERS.iter().map(|u| user(u)).filter(|_| self.rng.random_bool(0.6)).collect();
        let options = GroupOptions { members_add: self.rng.random_bool(0.5) };
        let made = self.devices[i].machine.create_group(now, "first title", &members, options, 0).unwrap();
        self.note(format!("{i} creates {made:?} with {members:?}"));
    }

    fn read(&mut self, i: usize) {
        let now = self.world.now;
        let upto = self.some_message(i).and_then(|m| Some((m.conversation, m.key?)));
        let Some((id, key)) = upto else { return };
        let device = &mut self.devices[i];
        let upto = device.book.upto(id, key);
        let all = self.rng.random_bool(0.4);
        device.machine.mark_read(now, id, if all { None } else { Some(&upto) });
    }

    fn set(&mut self, i: usize) {
        let now = self.world.now;
        let (who, on) = (self.somebody(), self.rng.random_bool(0.6));
        let conversations = self.conversations(i);
        let id = self.pick(&conversations);
        let machine = &mut self.devices[i].machine;
        if let Some(id) = id.filter(|_| on == (who.as_str() < "c")) {
            // Refused while the conversation's id is not final.
            let _set_or_not_yet = machine.mute(now, id, u64::from(on) * 99, 0);
        } else if machine.block(now, &who, on, 0).is_ok() {
            self.note(format!("{i} {} {who}", if on { "blocks" } else { "unblocks" }));
        }
    }

    fn erase(&mut self, i: usize) {
        let now = self.world.now;
        let Some(message) = self.some_message(i) else { return };
        let device = &mut self.devices[i];
        if self.rng.random_bool(0.1) {
            if let Ok(Some(_)) = device.machine.erase_my_messages(now, message.conversation, 0) {
                self.note(format!("{i} erases all of its user in {:?}", message.conversation));
            }
        } else if let Ok(Erased::Asked(_)) = device.machine.erase(now, &message, 0) {
            self.note(format!("{i} erases {:?} in {:?}", message.by, message.conversation));
        }
    }

    /// A new install of a user comes near some region.
    pub(super) fn join(&mut self, name: &'static str, device: &str) -> usize {
        let (first, seed) = (self.rng.random_range(0..3), self.rng.random());
        let mut device = Device::new(name, device, first, seed);
        device.setup.device = "a device".to_owned();
        device.machine = Machine::new(device.setup.clone(), device.book.image());
        self.devices.push(device);
        let (i, now) = (self.devices.len() - 1, self.world.now);
        self.note(format!("{i} joins as {:?}", self.devices[i].machine.install()));
        self.devices[i].machine.connect(now);
        self.steps(i, false);
        i
    }

    /// A device goes where it may never have been.
    fn roam(&mut self, i: usize) {
        let now = self.world.now;
        let region = self.rng.random_range(EU..=AP);
        self.devices[i].avoids = Some(region);
        let conn = self.devices[i].wires.iter().find(|(_, w)| w.region == region).map(|(c, _)| *c);
        if let Some(conn) = conn {
            self.hang_up(i, conn);
            self.devices[i].machine.ended(now, conn, &crate::client::Failure::Network("gone".into()));
        }
    }

    fn kick(&mut self, i: usize) {
        let now = self.world.now;
        let others: Vec<_> = self.devices[i].machine.devices().into_iter().filter(|d| !d.this).collect();
        let Some(other) = others.first() else { return };
        if self.devices[i].machine.kick(now, &other.install, "lost", 0).is_ok() {
            self.note(format!("{i} removes {:?}", other.install));
        }
    }

    pub(super) fn live(&mut self) {
        let i = self.someone();
        match self.rng.random_range(0..100) {
            0..38 => self.write(i),
            38..44 if self.groups(i).len() < 3 => self.new_group(i),
            44..62 => self.change_a_group(i),
            62..76 => self.read(i),
            76..80 => self.set(i),
            80..88 => self.erase(i),
            88..91 if self.devices.len() < Self::cast().len() + LATE => {
                let name = self.pick(&USERS).unwrap();
                self.join(name, &format!("late-{}", self.devices.len()));
            }
            91..99 => self.roam(i),
            99 => self.kick(i),
            _ => {}
        }
        self.steps(i, true);
    }
}
