//! Groups, devices, settings and erasure in `tern chat`.

use anyhow::Result;
use serde_json::json;
use tern_client::{
    Changed, ConvId, Conversation, ConversationInfo, Erased, FOR_EVER, GroupOptions, MessageState, Role,
};

use super::input::{Input, Which};
use super::{Chat, OUTBOX, excerpt, now_ms};

/// Digits of a group's id that lists show.
const ID_DIGITS: usize = 8;

/// What a group is called by `/to`.
pub(super) fn short_id(id: ConvId) -> String {
    format!("#{}", &id.to_string()[..ID_DIGITS])
}

/// What a list calls a conversation.
pub(super) fn name_of(info: &ConversationInfo) -> String {
    match (&info.peer, &info.group) {
        (Some(peer), _) => peer.as_str().to_owned(),
        (None, Some(group)) if !group.title.is_empty() => format!("{} {}", short_id(info.id), group.title),
        (None, _) => short_id(info.id),
    }
}

/// What a change of a group says.
pub(super) fn told(by: &str, changed: &Changed) -> String {
    let list = |users: &[String]| users.join(", ");
    match changed {
        Changed::Created { title, members } => format!("{by} made the group {title} with {}", list(members)),
        Changed::Added(users) => format!("{by} added {}", list(users)),
        Changed::Removed(users) if users.len() == 1 && users[0] == by => format!("{by} left"),
        Changed::Removed(users) => format!("{by} removed {}", list(users)),
        Changed::Promoted(users) => format!("{by} made {} an admin", list(users)),
        Changed::Demoted(users) => format!("{by} made {} a plain member", list(users)),
        Changed::Titled(title) if title.is_empty() => format!("{by} took the title away"),
        Changed::Titled(title) => format!("{by} named the group {title}"),
        Changed::Other => String::new(),
    }
}

/// Who is typing; nobody: nothing.
pub(super) fn typing(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("{one} is typing"),
        [one, two] => format!("{one} and {two} are typing"),
        more => format!("{} are typing", more.len()),
    }
}

impl Chat {
    pub(super) fn act_in_group(&mut self, input: Input) -> Result<()> {
        match input {
            Input::ToGroup(digits) => self.turn_to_group(&digits)?,
            Input::Group(title, members) => match self.client.create_group(&title, &members, GroupOptions::default()) {
                Ok(group) => self.enter(group)?,
                Err(error) => self.not_done(&error),
            },
            Input::Block(user, blocked) => {
                let set = self.client.block(&user, blocked);
                self.done(if blocked { "blocked" } else { "unblocked" }, user.as_str(), set);
            }
            Input::Hide(hidden) => {
                let set = self.client.hide_presence(hidden);
                self.done(if hidden { "hidden" } else { "shown" }, "when you are here", set);
            }
            Input::Kick(device, reason) => {
                let set = self.client.kick(&device, &reason);
                self.done("removed device", device.as_str(), set);
            }
            Input::Erase(Which::Everywhere) => match self.client.erase_everything(false) {
                Ok(count) => {
                    let text = format!("asked for in {count} conversations");
                    self.remark("erase", &text, json!({ "conversations": count }));
                }
                Err(error) => self.not_done(&error),
            },
            other => match self.with.clone() {
                Some((_, conversation)) => self.act_here(&conversation, other)?,
                None => self.remark("nobody", "say first where: /to USER or /to #ID", json!({})),
            },
        }
        Ok(())
    }

    fn act_here(&self, here: &Conversation, input: Input) -> Result<()> {
        let names = |users: &[tern_client::UserId]| {
            users.iter().map(tern_client::UserId::as_str).collect::<Vec<_>>().join(", ")
        };
        match input {
            Input::Add(users, history) => self.done("added", &names(&users), here.add(&users, history)),
            Input::Remove(users) => self.done("removed", &names(&users), here.remove(&users)),
            Input::Admin(user, admin) => {
                let role = if admin { Role::Admin } else { Role::Member };
                let what = if admin { "promoted" } else { "demoted" };
                self.done(what, user.as_str(), here.set_role(&user, role));
            }
            Input::Leave => self.done("left", "the group", here.leave()),
            Input::Title(title) => self.done("named", &title, here.set_title(&title)),
            Input::Members => self.members(here)?,
            Input::Mute(hours) => {
                let until = match hours {
                    None => FOR_EVER,
                    Some(0) => 0,
                    Some(hours) => now_ms() + hours * 3_600_000,
                };
                self.done(if until == 0 { "unmuted" } else { "muted" }, "this conversation", here.mute(until));
            }
            Input::Read => {
                here.mark_read()?;
                self.remark("read", "all of it", json!({}));
            }
            Input::Erase(Which::Here) => match here.erase_my_messages() {
                Ok(_) => self.remark("erase", "all your messages here", json!({})),
                Err(error) => self.not_done(&error),
            },
            Input::Erase(Which::Last(nth)) => {
                let mine = here.timeline(OUTBOX)?.messages.into_iter().rev();
                let mut mine = mine.filter(|m| m.by.user == *self.client.user() && !m.erased && !is_own_kind(m.kind));
                match mine.nth(nth - 1) {
                    None => self.remark("not done", "you have no such message here", json!({})),
                    Some(message) => match here.erase(message.id) {
                        Ok(Erased::Withdrawn) => self.remark("withdrawn", &excerpt(&message.body), json!({})),
                        Ok(Erased::Asked(_)) => self.remark("erase", &excerpt(&message.body), json!({})),
                        Err(error) => self.not_done(&error),
                    },
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn done<T, E: std::fmt::Display>(&self, what: &str, whom: &str, outcome: Result<T, E>) {
        match outcome {
            Ok(_) => self.remark(what, whom, json!({ "done": what, "of": whom })),
            Err(error) => self.not_done(&error),
        }
    }

    fn not_done(&self, error: &dyn std::fmt::Display) {
        self.remark("not done", &error.to_string(), json!({ "error": error.to_string() }));
    }

    fn turn_to_group(&mut self, digits: &str) -> Result<()> {
        let all = self.client.conversations()?;
        let fits: Vec<_> = all.iter().filter(|c| c.peer.is_none() && c.id.to_string().starts_with(digits)).collect();
        match fits[..] {
            [one] => self.enter(self.client.conversation(one.id)),
            [] => {
                self.remark("not done", "no group's id begins so; /list shows them", json!({}));
                Ok(())
            }
            _ => {
                self.remark("not done", "several groups' ids begin so: give more digits", json!({}));
                Ok(())
            }
        }
    }

    fn enter(&mut self, group: Conversation) -> Result<()> {
        let title = group.group()?.map(|g| g.title).unwrap_or_default();
        let id = group.id();
        let text = format!("{} {title}", short_id(id));
        self.remark("talking in", text.trim_end(), json!({ "group": id.to_string(), "title": title }));
        self.turn(text, group)?;
        self.watch(None)?;
        self.history(super::OPENING)
    }

    fn members(&self, here: &Conversation) -> Result<()> {
        let Some(group) = here.group()? else {
            self.remark("", "this is no group", json!({}));
            return Ok(());
        };
        if group.members.is_empty() {
            self.remark("members", "not known here yet", json!({ "members": 0 }));
        }
        for m in group.members {
            let role = if m.role == Role::Admin { " (admin)" } else { "" };
            let pending = if m.pending { " (not confirmed yet)" } else { "" };
            self.remark(
                "member",
                &format!("{}{role}{pending}", m.user),
                json!({ "user": m.user.as_str(), "admin": m.role == Role::Admin, "pending": m.pending }),
            );
        }
        Ok(())
    }

    pub(super) async fn devices(&mut self) -> Result<()> {
        let devices = match self.client.devices().await {
            Ok(devices) => devices,
            Err(error) => {
                self.remark("devices", &error.to_string(), json!({ "error": error.to_string() }));
                self.client.known_devices()?
            }
        };
        for d in devices {
            let this = if d.this { " (this one)" } else { "" };
            let at = if d.connected.is_empty() {
                String::new()
            } else {
                format!(", connected in {}", d.connected.join(", "))
            };
            self.remark(
                "device",
                &format!("{} {}{this}{at}", d.install, d.name),
                json!({ "install": d.install.as_str(), "name": d.name, "this": d.this, "connected": d.connected }),
            );
        }
        Ok(())
    }

    /// The other user has read more: says up to which of one's own messages.
    pub(super) fn peer_read(&self, conversation: ConvId) -> Result<()> {
        let Some((name, here)) = self.with.as_ref().filter(|(_, c)| c.id() == conversation) else { return Ok(()) };
        let mine = here.timeline(super::OPENING)?.messages.into_iter().rev();
        let mine = mine.filter(|m| m.by.user == *self.client.user() && m.state != MessageState::Queued);
        for message in mine {
            if here.peer_has_read(message.id)? {
                self.remark("read by", &format!("{name}: {}", excerpt(&message.body)), json!({ "id": message.id.0 }));
                break;
            }
        }
        Ok(())
    }
}

fn is_own_kind(kind: u32) -> bool {
    (16..=63).contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_a_group_are_told_as_sentences() {
        let users = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(told("ann", &Changed::Removed(users(&["ann"]))), "ann left");
        assert_eq!(told("ann", &Changed::Removed(users(&["bob", "cat"]))), "ann removed bob, cat");
        assert_eq!(told("ann", &Changed::Titled(String::new())), "ann took the title away");
        assert_eq!(typing(&["ann"]), "ann is typing");
        assert_eq!(typing(&["ann", "bob"]), "ann and bob are typing");
        assert_eq!((typing(&[]).as_str(), typing(&["a"; 5]).as_str()), ("", "5 are typing"));
    }
}
