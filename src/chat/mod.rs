//! `tern chat`: a client in a terminal, plain enough to be piped.
//!
//! What is typed is in the local store before the next prompt, connected or not. Lines that begin with `--`
//! are about the connection and about one's own messages; all others are messages.

mod groups;
pub mod input;
mod line;
mod presence;
mod terminal;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tern_client::{
    Change, Changed, Client, ConnectionState, ConvId, Conversation, Draft, Event, HttpProxy, Message, MessageId,
    MessageState, Placed, Trouble, UserId,
};
use tern_core::clock::Clock as _;
use tern_net::system::SystemClock;
use tokio::time::{Instant, sleep};

use crate::cli::{ChatArgs, Global};
use crate::cluster::Endpoints;
use crate::demo::person::{client_config, tokens};
use crate::exit::Failure;
use crate::logging;
use crate::stop::Stop;
use input::{HELP, Input};
use terminal::{Terminal, Typed};

/// Messages shown when a conversation is opened: a screen.
const OPENING: usize = 20;
/// Once the input has ended, this long is waited for what was typed to be acked.
const FLUSH_WITHIN: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Characters of an own message that are repeated when something became of it.
const EXCERPT: usize = 40;
/// Failed messages that one command looks through.
const OUTBOX: usize = 10_000;

/// Chats until the input ends or `/quit`.
pub fn run(global: &Global, args: &ChatArgs) -> Result<(), Failure> {
    // Somebody reads along: only what needs attention, unless asked for more.
    let quiet = Global { log: Some(global.log.clone().unwrap_or_else(|| "error".into())), ..global.clone() };
    let settings = crate::settings(&quiet, &[])?;
    logging::start(&settings.log_level, settings.log_json)?;
    crate::block_on(async {
        let mut stop = Stop::watch(false)?;
        let mut chat = Chat::open(global.json, args, &settings.data)?;
        tokio::select! {
            biased;
            _ = stop.requested() => {}
            outcome = chat.talk() => outcome?,
        }
        chat.client.close().await;
        Ok(())
    })
}

struct Chat {
    json: bool,
    terminal: Terminal,
    client: Client,
    with: Option<(String, Conversation)>,
    /// The other user of it, if it is a direct one.
    peer: Option<UserId>,
    told: Option<ConnectionState>,
    /// Messages that came while catching up, by conversation: they come in any order, so they are shown once
    /// all are there.
    caught_up: BTreeMap<ConvId, usize>,
}

impl Chat {
    fn open(json: bool, args: &ChatArgs, data: &Path) -> Result<Self> {
        let endpoints = Endpoints::read(data)?;
        let mut config = client_config(&endpoints, &args.user, args.near.as_deref())?;
        config.device = "tern chat".to_owned();
        config.proxy = proxy(args.proxy.as_deref(), |name| std::env::var(name).ok())?;
        let tokens = tokens(&endpoints, data, &args.user)?;
        let client = Client::builder(config)
            .store(data.join("chat"))
            .token_provider(tokens)
            .build()
            .context("the local store can't be opened")?;
        let terminal = Terminal::open(json)?;
        let mut chat = Self { json, terminal, client, with: None, peer: None, told: None, caught_up: BTreeMap::new() };
        if let Some(peer) = &args.to {
            chat.turn_to(peer.clone())?;
        }
        Ok(chat)
    }

    async fn talk(&mut self) -> Result<()> {
        let mut typed = self.terminal.typed()?;
        let mut events = self.client.events();
        match self.with {
            Some(_) => {}
            None => self.list()?,
        }
        self.connection(self.client.connection())?;
        loop {
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(event) => self.note(event)?,
                    None => return Ok(()),
                },
                typed = typed.recv() => match typed {
                    Some(Typed::Typing(typing)) => self.typing(typing)?,
                    Some(Typed::Line(line)) => match Input::parse(&line) {
                        Ok(Input::Quit) => return Ok(()),
                        Ok(Input::Devices) => self.devices().await?,
                        Ok(input) => self.act(input)?,
                        Err(what) => self.remark("input", &what, json!({ "error": what })),
                    },
                    None => break,
                },
            }
        }
        // The input was a file or a pipe: give what it held a chance to go out, and what is new to come in.
        let until = Instant::now() + FLUSH_WITHIN;
        while !(self.is_live() && self.client.waiting().0 == 0) && Instant::now() < until {
            while let Some(event) = events.try_next() {
                self.note(event)?;
            }
            sleep(LOOK_EVERY).await;
        }
        while let Some(event) = events.try_next() {
            self.note(event)?;
        }
        if self.client.waiting().0 > 0 {
            self.remark(
                "unsent",
                "what is not sent yet is kept, and sent next time",
                json!({ "messages": self.client.waiting().0 }),
            );
        }
        Ok(())
    }

    fn act(&mut self, input: Input) -> Result<()> {
        match input {
            Input::Say(text) => match &self.with {
                Some((_, conversation)) => {
                    if let Err(error) = conversation.send(Draft::text(text)) {
                        self.remark("not taken", &error.to_string(), json!({ "error": error.to_string() }));
                    }
                }
                None => self.remark("nobody", "say first to whom: /to USER", json!({})),
            },
            Input::Diagnostics => {
                let text = self.client.diagnostics();
                self.remark("diagnostics", &text, json!({ "text": text }));
            }
            Input::Typing if self.is_live() => self.typing(true)?,
            Input::Typing => self.remark("not done", "offline: nobody would see it", json!({})),
            Input::To(peer) => self.turn_to(peer)?,
            Input::History(count) => self.history(count)?,
            Input::List => self.list()?,
            Input::Status => self.status(),
            Input::Retry => self.with_failed("retried", |conversation, id| Ok(conversation.retry(id)?))?,
            Input::Discard => self.with_failed("discarded", |conversation, id| Ok(conversation.discard(id)?))?,
            Input::Help => HELP.lines().for_each(|line| self.remark("", line, json!({ "help": line }))),
            Input::Quit | Input::Empty | Input::Devices => {}
            other => self.act_in_group(other)?,
        }
        Ok(())
    }

    fn turn_to(&mut self, peer: UserId) -> Result<()> {
        let conversation = self.client.direct(&peer)?;
        self.remark("talking to", peer.as_str(), json!({ "peer": peer.as_str() }));
        self.turn(peer.as_str().to_owned(), conversation)?;
        self.watch(Some(peer))?;
        self.history(OPENING)
    }

    /// What is typed from now on is for another conversation.
    fn turn(&mut self, name: String, conversation: Conversation) -> Result<()> {
        self.typing(false)?;
        self.with = Some((name, conversation));
        self.show_typing()
    }

    fn typing(&self, typing: bool) -> Result<()> {
        match &self.with {
            Some((_, conversation)) => Ok(conversation.typing(typing)?),
            None => Ok(()),
        }
    }

    /// Who is typing here.
    fn show_typing(&self) -> Result<()> {
        let here = self.with.as_ref().map(|(_, conversation)| conversation.who_is_typing()).transpose()?;
        let names: Vec<_> = here.iter().flatten().map(UserId::as_str).collect();
        self.terminal.show_typing(&groups::typing(&names));
        Ok(())
    }

    fn history(&self, count: usize) -> Result<()> {
        if let Some((_, conversation)) = &self.with {
            for message in conversation.timeline(count)?.messages {
                self.show(&message, "");
            }
            conversation.mark_read()?;
        }
        Ok(())
    }

    fn list(&self) -> Result<()> {
        let all = self.client.conversations()?;
        if all.is_empty() {
            self.remark(
                "",
                "no conversations yet: /to USER begins one, /help lists the rest",
                json!({ "conversations": 0 }),
            );
        }
        for info in all {
            let name = groups::name_of(&info);
            let peer = name.as_str();
            let left = if info.left { " (left)" } else { "" };
            let muted = if info.muted_until_ms > now_ms() { ", muted" } else { "" };
            let more = if info.unread.exact { "" } else { " or more" };
            let last = info.last.as_ref().map(|m| if m.erased { "(erased)".into() } else { excerpt(&m.body) });
            let last = last.unwrap_or_default();
            self.remark(
                peer,
                &format!("{}{more} unread{muted}{left}; {last}", info.unread.count),
                json!({ "peer": peer, "id": info.id.to_string(), "left": info.left, "unread": info.unread.count, "exact": info.unread.exact, "last": last }),
            );
        }
        Ok(())
    }

    fn status(&self) {
        let (unsent, unstable) = self.client.waiting();
        let trip = self.client.round_trip().map_or_else(String::new, |t| format!(", round trip {} ms", t.as_millis()));
        self.remark(
            "status",
            &format!(
                "{}{trip}; {unsent} not sent, {unstable} sent and not yet in a second region",
                described(&self.client.connection())
            ),
            json!({ "connection": described(&self.client.connection()), "unsent": unsent, "unstable": unstable }),
        );
    }

    fn with_failed(&self, done: &str, act: impl Fn(&Conversation, MessageId) -> Result<()>) -> Result<()> {
        let Some((_, conversation)) = &self.with else { return Ok(()) };
        let messages = conversation.timeline(OUTBOX)?.messages;
        let failed: Vec<_> = messages
            .into_iter()
            .filter(|m| matches!(m.state, MessageState::Failed(_) | MessageState::Unknown(_)))
            .collect();
        for message in &failed {
            match act(conversation, message.id) {
                Ok(()) => self.remark(done, &excerpt(&message.body), json!({ "id": message.id.0 })),
                Err(error) => self.remark("not done", &error.to_string(), json!({ "error": error.to_string() })),
            }
        }
        if failed.is_empty() {
            self.remark("", "nothing was refused here", json!({}));
        }
        Ok(())
    }

    fn note(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Connection(state) => self.connection(state)?,
            Event::Message(Change { id, what: Placed::Erased, conversation }) => {
                let here = self.with.as_ref().is_some_and(|(_, c)| c.id() == conversation);
                if let Some(message) = self.client.message(id)?.filter(|_| here) {
                    let text = format!("a message of {} from {}", message.by.user, clock(message.wall_ms));
                    self.remark("erased", &text, json!({ "id": id.0 }));
                }
            }
            Event::Message(Change { id, what, .. }) => {
                if let Some(message) = self.client.message(id)?
                    && message.state == MessageState::Received
                    && !matches!(what, Placed::Moved { .. })
                {
                    self.received(&message, matches!(what, Placed::Inserted { .. }))?;
                }
            }
            Event::Sent { id, .. } => self.became(id, "sent", json!({}))?,
            Event::Stable { id, regions, .. } => self.became(id, "stable", json!({ "regions": regions }))?,
            Event::Failed { id, code, message, .. } => {
                self.became(id, "refused", json!({ "code": code, "reason": message }))?;
                self.remark("refused", &format!("{message}; /retry or /discard"), json!({ "code": code }));
            }
            Event::Unknown { id, message, .. } => {
                self.became(id, "not known whether sent", json!({ "reason": message }))?;
            }
            Event::ChangeRefused { message, code, .. } => {
                self.remark("refused", &format!("the change was undone: {message}"), json!({ "code": code }));
            }
            Event::GatewayForgot { .. } => {}
            Event::Presence { user, presence } => self.presence(&user, presence),
            Event::PeerRead { conversation } => self.peer_read(conversation)?,
            Event::Typing { conversation, user, typing } => {
                let here = self.with.as_ref().is_some_and(|(_, c)| c.id() == conversation);
                if self.json {
                    let id = conversation.to_string();
                    let data = json!({ "user": user.as_str(), "typing": typing, "conversation": id, "here": here });
                    self.remark("typing", "", data);
                } else if self.terminal.sees_keys() {
                    self.show_typing()?;
                } else if here && typing {
                    self.remark("", &groups::typing(&[user.as_str()]), json!({}));
                }
            }
            Event::GroupChanged { .. } | Event::SettingsChanged { .. } | Event::Read { .. } | Event::Devices => {}
            Event::AtRisk { id, .. } => self.became(id, "at risk", json!({}))?,
            Event::ReOffered { count, .. } => {
                self.remark("offering", &format!("{count} messages to another region"), json!({ "count": count }));
            }
            Event::Gap { from, to, reason, .. } => self.remark(
                "gap",
                &format!("{} messages can't be had ({reason:?})", to.saturating_sub(from) + 1),
                json!({ "from": from, "to": to }),
            ),
            Event::Kicked { message, .. } => self.remark("ended", &message, json!({ "reason": message })),
            Event::StoreFailed { message } => self.remark("store", &message, json!({ "error": message })),
            Event::Lagged { missed } => {
                self.remark(
                    "behind",
                    &format!("{missed} events were not shown; /history shows the messages"),
                    json!({ "missed": missed }),
                );
            }
            Event::Renamed { .. } => {}
        }
        Ok(())
    }

    fn received(&mut self, message: &Message, late: bool) -> Result<()> {
        if matches!(Changed::read(message), Some(Changed::Other)) {
            return Ok(());
        }
        if !self.is_live() {
            *self.caught_up.entry(message.conversation).or_default() += 1;
            return Ok(());
        }
        match &self.with {
            Some((_, conversation)) if conversation.id() == message.conversation => {
                self.show(message, if late { " (late)" } else { "" });
                conversation.mark_read()?;
            }
            _ => {
                let from = message.by.user.as_str();
                let conversation = self.client.conversation(message.conversation);
                let blocked = self.client.blocked()?.contains(&message.by.user);
                if blocked || conversation.is_muted()? {
                    return Ok(());
                }
                let text = match Changed::read(message) {
                    Some(changed) => groups::told(from, &changed),
                    None => excerpt(&message.body),
                };
                let answer = match conversation.group()? {
                    Some(_) => groups::short_id(message.conversation),
                    None => from.to_owned(),
                };
                self.remark(
                    "from",
                    &format!("{from}: {text} (/to {answer} answers)"),
                    json!({ "from": from, "text": text, "to": answer }),
                );
            }
        }
        Ok(())
    }

    /// Shows what came while catching up: the newest of this conversation, and that there is more in others.
    fn show_caught_up(&mut self) -> Result<()> {
        let caught_up = std::mem::take(&mut self.caught_up);
        let here = self.with.as_ref().map(|(_, conversation)| conversation.id());
        if let Some(count) = here.and_then(|here| caught_up.get(&here)) {
            if *count > OPENING {
                self.remark("new", &format!("{count} messages, the newest {OPENING}:"), json!({ "messages": count }));
            }
            self.history((*count).min(OPENING))?;
        }
        if caught_up.keys().any(|id| Some(*id) != here) {
            self.list()?;
        }
        Ok(())
    }

    /// As far as was told.
    fn is_live(&self) -> bool {
        matches!(self.told, Some(ConnectionState::Live { .. }))
    }

    fn became(&self, id: MessageId, what: &str, more: serde_json::Value) -> Result<()> {
        let Some(message) = self.client.message(id)? else { return Ok(()) };
        if let Some(text) = in_short(&message) {
            self.remark(what, &text, json!({ "id": id.0, "more": more }));
        }
        Ok(())
    }

    fn connection(&mut self, state: ConnectionState) -> Result<()> {
        let kind = |trouble: Option<&Trouble>| trouble.map(std::mem::discriminant);
        // Waiting times and words change with every attempt: say once that it is connecting, and once why.
        let same = match (&self.told, &state) {
            (
                Some(ConnectionState::Connecting { trouble: before, .. }),
                ConnectionState::Connecting { trouble: now, .. },
            ) => now.is_none() || kind(before.as_ref()) == kind(now.as_ref()),
            (Some(ConnectionState::Recovering { .. }), ConnectionState::Recovering { .. }) => true,
            (told, state) => told.as_ref() == Some(state),
        };
        if !same {
            self.remark("connection", &described(&state), json!({ "connection": described(&state) }));
        }
        self.told = Some(state);
        if self.is_live() { self.show_caught_up() } else { Ok(()) }
    }

    fn show(&self, message: &Message, place: &str) {
        if let Some(changed) = Changed::read(message) {
            if changed != Changed::Other {
                let text = groups::told(message.by.user.as_str(), &changed);
                self.remark("group", &text, json!({ "by": message.by.user.as_str() }));
            }
            return;
        }
        let body = String::from_utf8_lossy(&message.body);
        let text = if message.erased { "(erased)".into() } else { body };
        let state = match message.state {
            MessageState::Queued => " (not sent yet)",
            MessageState::Failed(_) => " (refused)",
            MessageState::Unknown(_) => " (not known whether sent)",
            MessageState::Sent => " (sent)",
            MessageState::Received | MessageState::Stable | MessageState::AtRisk => "",
        };
        if self.json {
            self.terminal.show(
                &json!({
                    "event": "message", "from": message.by.user.as_str(), "text": text, "wall_ms": message.wall_ms,
                    "state": format!("{:?}", message.state),
                })
                .to_string(),
            );
        } else {
            let (when, who) = (clock(message.wall_ms), &message.by.user);
            self.terminal.show(&format!("{when} {who}: {}{state}{place}", printable(&text)));
        }
    }

    fn remark(&self, what: &str, text: &str, mut data: serde_json::Value) {
        if self.json {
            if let serde_json::Value::Object(fields) = &mut data {
                fields.insert("event".into(), json!(what));
            }
            self.terminal.show(&data.to_string());
        } else {
            let gap = if what.is_empty() { "" } else { " " };
            self.terminal.show(&format!("-- {what}{gap}{}", printable(text)));
        }
    }
}

/// The proxy that is asked for, or else that of the environment.
fn proxy(asked: Option<&str>, var: impl Fn(&str) -> Option<String>) -> Result<Option<HttpProxy>> {
    match asked {
        Some("none" | "") => Ok(None),
        Some(url) => url.parse().map(Some).context("--proxy can't be used"),
        None => HttpProxy::of_environment(var).context("the proxy of the environment can't be used (see --proxy)"),
    }
}

fn described(state: &ConnectionState) -> String {
    match state {
        ConnectionState::Offline => "offline".into(),
        ConnectionState::Connecting { trouble: None, .. } => "connecting".into(),
        ConnectionState::Connecting { trouble: Some(trouble), .. } => format!("connecting; {trouble}"),
        ConnectionState::Recovering { edge, region, transport, .. } => {
            format!("catching up at {edge} in {region} by {}", transport.name())
        }
        ConnectionState::Live { edge, region, transport } => {
            format!("live at {edge} in {region} by {}", transport.name())
        }
    }
}

/// The calendar clock.
fn now_ms() -> u64 {
    SystemClock.wall_ms()
}

/// What others write must not move this terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let mut short: String = printable(&text).chars().take(EXCERPT).collect();
    if text.chars().count() > EXCERPT {
        short.push_str("...");
    }
    short
}

/// An own message as it is repeated when something became of it. Settings and erasures have said all there is.
fn in_short(message: &Message) -> Option<String> {
    match Changed::read(message) {
        None => Some(excerpt(&message.body)),
        Some(Changed::Other) => None,
        Some(changed) => Some(groups::told(message.by.user.as_str(), &changed)),
    }
}

/// Hours and minutes, UTC: the standard library knows no other time.
fn clock(wall_ms: u64) -> String {
    let minutes = wall_ms / 60_000;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_can_not_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\td"), "a\u{fffd}[2Jb\u{fffd}c\td");
        assert_eq!(excerpt(&[b'x'; 50]), format!("{}...", "x".repeat(40)));
    }

    #[test]
    fn settings_are_not_repeated_and_changes_of_a_group_are_told_in_words() {
        use prost::Message as _;
        use tern_core::wire::v1;
        let of = |kind, body: Vec<u8>| Message {
            id: MessageId(1),
            conversation: ConvId([1; 16]),
            by: tern_core::ids::Identity {
                user: UserId::new("ann").unwrap(),
                install: tern_client::InstallId::new("i").unwrap(),
                n: 1,
            },
            kind,
            body: body.into(),
            wall_ms: 0,
            key: None,
            state: MessageState::Sent,
            unread: false,
            erased: false,
        };
        let device = v1::Cell { key: "device/i".into(), value: vec![0, 1].into() };
        assert_eq!(in_short(&of(tern_core::kinds::CELL, device.encode_to_vec())), None);
        let title = v1::Cell { key: "title".into(), value: "trip".into() };
        let told = in_short(&of(tern_core::kinds::CELL, title.encode_to_vec()));
        assert_eq!(told.as_deref(), Some("ann named the group trip"));
        assert_eq!(in_short(&of(0, b"hi".to_vec())).as_deref(), Some("hi"));
    }

    #[test]
    fn the_proxy_is_the_one_asked_for_or_that_of_the_environment() {
        let var = |name: &str| (name == "HTTPS_PROXY").then(|| "http://user:pw@office:3128".to_owned());
        let found = |asked| proxy(asked, var).unwrap().map(|proxy| proxy.address);
        assert_eq!(found(None).as_deref(), Some("office:3128"));
        assert_eq!(found(Some("http://other:8080")).as_deref(), Some("other:8080"));
        assert_eq!(found(Some("none")), None);
        assert_eq!(proxy(None, |_| None).unwrap(), None);
        let error = format!("{:#}", proxy(Some("socks5://user:pw@x:1"), var).unwrap_err());
        assert!(error.contains("--proxy") && error.contains("http://host:port") && !error.contains("pw"), "{error}");
    }

    #[test]
    fn times_are_of_the_day() {
        assert_eq!(clock(0), "00:00");
        assert_eq!(clock(86_400_000 + 3_600_000 * 13 + 60_000 * 5), "13:05");
    }
}
