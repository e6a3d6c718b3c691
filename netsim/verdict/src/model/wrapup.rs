//! The final state, and what links and radios did.

use std::collections::BTreeMap;

use super::{MS, Making, Model, S};
use crate::history::{Event, LinkSample};

impl Making {
    pub(super) fn wrap_up(&mut self, model: &Model, end_ns: u64) {
        if model.link_samples {
            self.sample_links(end_ns);
        }
        let count = self.weather.reconnects();
        self.push(end_ns - MS, Event::Sometimes { name: "reconnected".into(), count });
        let mut packets = 0;
        for (device, _) in self.devices.clone() {
            let up_packets = self.sent.iter().filter(|s| s.id.starts_with(&device)).count() as u64 * 2 + 40;
            let down_packets = up_packets + self.sent.len() as u64;
            packets += up_packets + down_packets;
            let (up_bytes, down_bytes, wakeups) = (up_packets * 210, down_packets * 240, 2 + up_packets / 9);
            let over_ns = end_ns;
            self.push(
                end_ns,
                Event::Traffic { device, up_bytes, down_bytes, up_packets, down_packets, wakeups, over_ns },
            );
        }
        let conversations = self.cast.conversations.clone();
        for (conversation, users) in &conversations {
            self.tell(conversation, users, end_ns);
        }
        let shape = Some(format!("{:016x}", hash(&format!("{}{packets}", model.seed))));
        self.push(end_ns, Event::End { quiet: true, waiting: Vec::new(), shape, packets });
    }

    fn tell(&mut self, conversation: &String, users: &[String], end_ns: u64) {
        let all: Vec<(String, String)> = self
            .sent
            .iter()
            .filter(|s| s.conversation == *conversation)
            .map(|s| (s.id.clone(), self.devices[s.device].1.clone()))
            .collect();
        let messages: Vec<String> = all.iter().map(|(id, _)| id.clone()).collect();
        for (device, user) in self.devices.clone() {
            if !users.contains(&user) || !self.sees(conversation, &user, u64::MAX) {
                continue;
            }
            let unread = all.iter().rev().take_while(|(_, of)| *of != user).count() as u64;
            let told = Event::Timeline {
                device,
                conversation: conversation.clone(),
                messages: messages.clone(),
                unread: Some((unread, true)),
            };
            self.push(end_ns, told);
        }
        let mut heads: BTreeMap<&str, u32> = BTreeMap::new();
        for sent in self.sent.iter().filter(|s| s.conversation == *conversation) {
            *heads.entry(&sent.region).or_default() += 1;
        }
        let heads = heads.iter().map(|(r, n)| format!("{r}:{n}")).collect::<Vec<_>>().join(" ");
        for region in self.cast.regions.clone() {
            let log = Event::Log {
                region: region.clone(),
                conversation: conversation.clone(),
                heads: heads.clone(),
                digest: format!("{:016x}", hash(&messages.join(" "))),
            };
            self.push(end_ns, log);
            for user in users {
                let row = Event::Row {
                    region: region.clone(),
                    user: user.clone(),
                    conversation: conversation.clone(),
                    row: format!("heads {heads}"),
                };
                self.push(end_ns, row);
            }
        }
    }

    /// What links did: a packet for each thing that happened to the device in that second, and a few more.
    fn sample_links(&mut self, end_ns: u64) {
        let mut busy: BTreeMap<(String, u64), u64> = BTreeMap::new();
        for (at_ns, event) in &self.lines {
            if let Event::Invoke { device, .. } | Event::Acked { device, .. } | Event::Shown { device, .. } = event {
                *busy.entry((device.clone(), at_ns / S)).or_default() += 1;
            }
        }
        for index in 0..self.devices.len() {
            let device = self.devices[index].0.clone();
            for second in 0..end_ns / S {
                let dark = self
                    .weather
                    .of(index)
                    .iter()
                    .any(|d| d.from_ns > 0 && d.from_ns / S <= second && second < d.live_ns / S);
                let load = busy.get(&(device.clone(), second)).copied().unwrap_or(0);
                for way in ["up", "down"] {
                    let sent = load * 2 + self.random.below(3);
                    let mut dropped = BTreeMap::new();
                    if dark {
                        dropped.insert("outage".to_owned(), sent);
                    } else {
                        let lost = self.random.below(40) / 37;
                        dropped.insert("loss".to_owned(), lost.min(sent));
                        dropped.insert("queue".to_owned(), (self.random.below(90) / 88).min(sent - lost.min(sent)));
                    }
                    dropped.retain(|_, n| *n > 0);
                    let delivered = sent - dropped.values().sum::<u64>();
                    let sample = LinkSample {
                        link: format!("{device}.cell"),
                        way: way.into(),
                        over_ns: S,
                        sent,
                        sent_bytes: sent * 220,
                        delivered,
                        delivered_bytes: delivered * 220,
                        dropped,
                        queue_bytes: if dark { sent * 220 } else { self.random.below(1 + sent * 300) },
                    };
                    self.push((second + 1) * S, Event::Link(Box::new(sample)));
                }
            }
        }
    }
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
