//! Who is there: the other user of the direct conversation that is open.

use anyhow::Result;
use serde_json::json;
use tern_client::{Presence, UserId};

use super::{Chat, now_ms};

/// In words.
fn told(name: &str, presence: Presence, now_ms: u64) -> String {
    let Presence::Gone(since_ms) = presence else { return format!("{name} is online") };
    let Some(since_ms) = since_ms else { return format!("{name} is not here") };
    match now_ms.saturating_sub(since_ms) / 60_000 {
        0 | 1 => format!("{name} was here a minute ago"),
        minutes @ 2..120 => format!("{name} was here {minutes} min ago"),
        minutes @ 120..2880 => format!("{name} was here {} h ago", minutes / 60),
        minutes => format!("{name} was here {} days ago", minutes / 1440),
    }
}

impl Chat {
    /// Whose presence is shown from now on.
    pub(super) fn watch(&mut self, peer: Option<UserId>) -> Result<()> {
        self.client.watch_presence(peer.as_slice())?;
        self.peer = peer;
        Ok(())
    }

    pub(super) fn presence(&self, user: &UserId, presence: Presence) {
        if self.peer.as_ref() == Some(user) {
            let since_ms = match presence {
                Presence::Online => None,
                Presence::Gone(since_ms) => since_ms,
            };
            let online = presence == Presence::Online;
            let data = json!({ "user": user.as_str(), "online": online, "since_ms": since_ms });
            self.remark("", &told(user.as_str(), presence, now_ms()), data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_as_people_do() {
        const MIN: u64 = 60_000;
        let gone = |minutes: u64| told("bob", Presence::Gone(Some(10_000 * MIN)), (10_000 + minutes) * MIN + 7);
        assert_eq!(told("bob", Presence::Online, 0), "bob is online");
        assert_eq!(told("bob", Presence::Gone(None), 0), "bob is not here");
        assert_eq!([gone(0), gone(1)], ["bob was here a minute ago"; 2]);
        assert_eq!(gone(5), "bob was here 5 min ago");
        assert_eq!(gone(180), "bob was here 3 h ago");
        assert_eq!(gone(3 * 1440), "bob was here 3 days ago");
        assert_eq!(told("bob", Presence::Gone(Some(9 * MIN)), 0), "bob was here a minute ago", "clocks differ");
    }
}
