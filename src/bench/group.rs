//! A group of 200 members who are all online, and a device that comes back to 1,000 messages.
//!
//! In the group one member writes and 199 read, one device each; what counts is how many messages reach a device
//! per second of the server's processors, with one message in flight and with 16. The returning device knows the
//! conversation but has none of its messages: it says Hello, learns from the rows how far the log goes, and pulls
//! it in parallel ranges, as the SDK does.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use prost::Message;
use tern_core::ids::{ConvId, UserId};
use tern_core::kinds::CREATE;
use tern_core::limits::PULL_ENTRIES;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{codec, v1};

use super::latency::Latencies;
use super::load::each;
use super::messages::{BODY_BYTES, Clients, Pace, Receiver, Sender, phase};
use super::report::Goal;
use super::session::{Dialer, QuicSession, unexpected};
use super::{Bench, Server};

/// Members of the group, the one who writes included.
const MEMBERS: usize = 200;
/// Messages in flight, one phase each.
const IN_FLIGHT: [usize; 2] = [1, 16];
/// Deliveries per second of processor that each phase is held against.
const GOALS: [f64; 2] = [100_000.0, 300_000.0];
/// Messages that wait for the returning device.
const QUEUED: u64 = 1_000;
/// Returns that are timed; the median counts.
const RETURNS: usize = 50;
/// From Hello to the last message, in milliseconds.
const RETURN_GOAL_MS: f64 = 10.0;
/// Connects under way at once.
const AT_ONCE: usize = 32;

/// See the module.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = bench.start_region().await?;
    let measured = async {
        group(bench, &server).await?;
        queued(bench, &server).await
    };
    let measured = measured.await;
    bench.stop_region().await;
    measured
}

async fn group(bench: &mut Bench, server: &Server) -> Result<()> {
    bench.report.progress(&format!("group: connecting {MEMBERS} members"));
    let dialer = Dialer::new(bench, server)?;
    let tokens = std::sync::Arc::new(bench.tokens("member", MEMBERS)?);
    let users: Vec<UserId> = tokens.iter().map(|(user, _)| user.clone()).collect();
    let connected = each(&bench.env, MEMBERS, AT_ONCE, move |i| {
        let (dialer, tokens) = (dialer.clone(), tokens.clone());
        async move {
            let (user, token) = tokens.get(i).context("too few tokens")?;
            dialer.quic(i, user, token).await
        }
    });
    let mut sessions = connected.await?;
    let mut first = sessions.swap_remove(0);
    let conversation = create(&mut first, &users).await?;
    let mut sender = Sender::new(first, conversation, None);
    sender.n = 1;
    let receivers = sessions.into_iter().map(Receiver::new).collect();
    let mut clients = Clients { senders: vec![sender], receivers };
    let time = Duration::from_secs(u64::from(bench.args.seconds));
    for (in_flight, goal) in IN_FLIGHT.into_iter().zip(GOALS) {
        bench.report.progress(&format!("group: {MEMBERS} members, {in_flight} in flight"));
        let (back, measured) = phase(bench, server, clients, Pace::InFlight(in_flight), time).await?;
        clients = back;
        let prefix = format!("group.{in_flight}");
        let meaning = "messages that reached a device per second of the server's processors";
        let rate = measured.deliveries_per_cpu_second();
        bench.report.held(format!("{prefix}.deliveries"), rate, "/cpu s", Goal::AtLeast(goal), meaning);
        measured.report(bench, &prefix, None, None);
    }
    Ok(())
}

/// Creates a group of these users, the first of whom asks.
pub async fn create(session: &mut QuicSession, users: &[UserId]) -> Result<ConvId> {
    let creator = users.first().context("no members")?;
    let nonce = [7; 16];
    let id = ConvId::group(creator, &nonce);
    let create = v1::GroupCreate {
        members: users
            .iter()
            .map(|user| v1::GroupMember { user: user.as_str().to_owned(), role: 0, generation: 1 })
            .collect(),
        title: "bench".to_owned(),
        members_add: true,
        nonce: Bytes::copy_from_slice(&nonce),
    };
    let send = v1::Send {
        conversation_id: Bytes::copy_from_slice(&id.0),
        n: 1,
        kind: CREATE,
        body: create.encode_to_vec().into(),
        ..v1::Send::default()
    };
    let mut out = BytesMut::new();
    codec::put(&v1::Frame::new(1, Body::Send(send)), &mut out);
    session.message.send.write_all(&out).await?;
    loop {
        let frame: v1::Frame = session.message.frames.next().await?.context("the server ended a lane")?;
        match frame.body {
            Some(Body::Ack(_)) => return Ok(id),
            Some(Body::Define(_) | Body::Push(_) | Body::Stable(_) | Body::Advance(_)) => {}
            _ => bail!(unexpected(&frame)),
        }
    }
}

async fn queued(bench: &mut Bench, server: &Server) -> Result<()> {
    bench.report.progress(&format!("group: a device comes back to {QUEUED} messages"));
    let dialer = Dialer::new(bench, server)?;
    let tokens = bench.tokens("queued", 2)?;
    let [(from, from_token), (to, to_token)] = &tokens[..] else { bail!("too few tokens") };
    let session = dialer.quic(0, from, from_token).await?;
    let id = ConvId::direct(&session.direct_salt, from, to);
    fill(session, id, to).await?;
    let (mut from_hello, mut from_connect) = (Latencies::default(), Latencies::default());
    for i in 0..RETURNS {
        let began = bench.env.clock.now();
        let connection = dialer.quic_connection(i).await?;
        let hello_at = bench.env.clock.now();
        let mut session = dialer.session(connection, to, to_token, i).await?;
        pull_all(&mut session, id).await?;
        let done = bench.env.clock.now();
        from_hello.add(done.saturating_sub(hello_at));
        from_connect.add(done.saturating_sub(began));
        session.connection.close(0u32.into(), b"");
    }
    let report = &mut bench.report;
    let meaning = "1,000 queued messages to a returning device: from Hello to the last of them, median";
    report.held("queued.p50".to_owned(), from_hello.percentile_ms(50), "ms", Goal::AtMost(RETURN_GOAL_MS), meaning);
    report.add("queued.p99", from_hello.percentile_ms(99), "ms", "likewise, 99 of 100");
    report.add(
        "queued.connect.p50",
        from_connect.percentile_ms(50),
        "ms",
        "likewise, the QUIC handshake included, median",
    );
    Ok(())
}

/// Writes the messages that will wait.
async fn fill(mut session: QuicSession, id: ConvId, to: &UserId) -> Result<()> {
    let mut acked = 0;
    let mut sent = 0;
    while acked < QUEUED {
        let mut out = BytesMut::new();
        while sent < QUEUED && sent - acked < 64 {
            sent += 1;
            let send = v1::Send {
                conversation_id: Bytes::copy_from_slice(&id.0),
                n: sent,
                floor_back: sent - acked - 1,
                peer: to.as_str().to_owned(),
                body: vec![b'x'; BODY_BYTES].into(),
                ..v1::Send::default()
            };
            codec::put(&v1::Frame::new(u32::try_from(sent).unwrap_or(1), Body::Send(send)), &mut out);
        }
        session.message.send.write_all(&out).await?;
        let frame: v1::Frame = session.message.frames.next().await?.context("the server ended a lane")?;
        match frame.body {
            Some(Body::Ack(_)) => acked += 1,
            Some(Body::Define(_) | Body::Push(_) | Body::Stable(_) | Body::Advance(_)) => {}
            _ => bail!(unexpected(&frame)),
        }
    }
    Ok(())
}

/// Pulls the whole log of a conversation that the rows name.
async fn pull_all(session: &mut QuicSession, id: ConvId) -> Result<()> {
    let Some((origin, head)) = session.head_of(id) else { bail!("the rows do not name the conversation") };
    let step = PULL_ENTRIES as u64;
    let mut out = BytesMut::new();
    let mut open = 0u64;
    for (req, from) in (2u32..).zip((1..=head).step_by(PULL_ENTRIES)) {
        let pull = v1::PullEntries {
            conversation: Bytes::copy_from_slice(&id.0),
            origin: Some(origin),
            from,
            to: (from + step - 1).min(head),
            limit: 0,
            backwards: false,
        };
        codec::put(&v1::Frame::new(req, Body::Pull(pull)), &mut out);
        open += 1;
    }
    session.bulk.send.write_all(&out).await?;
    let mut entries = 0;
    while open > 0 {
        let frame: v1::Frame = session.bulk.frames.next().await?.context("the server ended a lane")?;
        match frame.body {
            Some(Body::Page(page)) => {
                entries += page.entries.len() as u64;
                open -= u64::from(page.last);
            }
            _ => bail!(unexpected(&frame)),
        }
    }
    if entries == head { Ok(()) } else { bail!("{entries} of {head} messages came") }
}
