//! The routes of another region: memory for each of its users, bytes for each change, and the time for a full copy over
//! a node link.
//!
//! All of it lies in this process: two core nodes' machines, and for the copy a QUIC connection over loopback between
//! them, with the parameters, the framing and the certificates of a region link. What a real region does besides,
//! messages above all, is not in the way here.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tern_core::limits::NODE_FRAME_BYTES;
use tern_core::node::routes::figures::{
    BYTES_PER_USER, Changes, HERE, RESYNC, THERE, WIRE_BYTES_PER_SECOND, exchange, pair, wire,
};
use tern_core::node::routes::{Holder, Routes};
use tern_core::wire::node_v1::NodeFrame;
use tern_net::env::Env;
use tern_net::frames::{FrameWriter, QuicFrames};
use tern_net::quic::{QuicParams, client_config, client_endpoint, server_endpoint};
use tokio::sync::{oneshot, watch};

use crate::cli::Global;
use crate::config::scope::Role;
use crate::node::Node;
use crate::pki::region_server_name;

use super::Bench;
use super::report::Goal;

/// Users of the other region; fewer where the program is not optimized, and times say nothing anyway.
const USERS: u64 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
/// And for the parts in which each change is looked at.
const USERS_CHANGING: u64 = USERS / 5;
/// A copy that takes longer than this has failed.
const COPY_WITHIN: Duration = Duration::from_secs(120);
/// Nothing is to be done for so long at most before the machine is asked again.
const TICK: Duration = Duration::from_millis(50);

/// See the module.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    bench.report.progress(&format!("routes: {USERS} users of another region"));
    let (mut here, mut there) = tokio::task::block_in_place(|| pair(USERS_CHANGING));
    let now = Duration::from_secs(1_000);
    tokio::task::block_in_place(|| exchange(now, &mut here, &mut there));
    for (changes, key, meaning) in [
        (Changes::ComeAndGo, "routes.wire.come_and_go", "to one other region, 1,700 users a second come or go"),
        (Changes::Move, "routes.wire.move", "likewise, all of them connect anew"),
    ] {
        let rate = tokio::task::block_in_place(|| wire(&mut here, &mut there, USERS_CHANGING, changes));
        bench.report.held(key, rate, "B/s", Goal::AtMost(WIRE_BYTES_PER_SECOND), meaning);
    }
    drop((here, there));

    bench.report.progress("routes: a full copy over a node link");
    let (here, there) = tokio::task::block_in_place(|| pair(USERS));
    let (took, bytes, there) = copy(bench, here, there).await?;
    let users = there.parts(bench.env.clock.now()).next().map_or(0, |part| part.users);
    ensure!(users as u64 == USERS, "{users} of {USERS} users came over");
    let goal = Goal::AtMost(BYTES_PER_USER);
    let memory = bytes as f64 / USERS as f64;
    bench.report.held("routes.memory", memory, "B", goal, "memory per user of another region, ids of 20 bytes");
    let goal = Goal::AtMost(RESYNC.as_secs_f64());
    let meaning = format!("until another region knows {USERS} users, over QUIC on loopback");
    bench.report.held("routes.copy", took.as_secs_f64(), "s", goal, meaning);
    Ok(())
}

/// Links both and waits until `there` has it all: how long that takes, and what it takes in memory.
async fn copy(bench: &Bench, here: Routes, there: Routes) -> Result<(Duration, usize, Routes)> {
    let config = bench.cluster.data.join(&bench.region.name).join("tern.toml");
    let global = Global { config: Some(config), ..Global::default() };
    let node = Node::new(crate::settings(&global, &[]).map_err(|e| anyhow::anyhow!("{e:?}"))?, Role::Region)?;
    let (server, client) = node.node_tls()?;
    let (env, params) = (bench.env.clone(), QuicParams::node());
    let any = ([127, 0, 0, 1], 0).into();
    let listening = server_endpoint(&env, any, server, &params).context("the link can't be served")?;
    let to = listening.local_addr().context("the link has no address")?;
    let dialling = client_endpoint(&env, any).context("the link can't be dialled")?;
    let config = client_config(&env, client, &params)?;
    let dialled = dialling.connect_with(config, to, &region_server_name(&node.region_name))?;
    let accepted = async { listening.accept().await.context("the endpoint is closed")?.await.context("no handshake") };
    let dialled = async { dialled.await.context("no connection") };
    let (near, far) = tokio::try_join!(dialled, accepted)?;

    let goal = here.fingerprint(None);
    let begun = env.clock.now();
    let (stop, stopped) = watch::channel(false);
    let (tell, told) = oneshot::channel();
    let done = move |routes: &Routes| routes.fingerprint(Some(HERE)) == goal;
    let never = |_: &Routes| false;
    let (send, recv) = near.open_bi().await?;
    let asks = Side { env: env.clone(), routes: there, other: HERE, send, recv, stopped: stopped.clone() };
    let (near_task, far_env) = (Arc::new(near), env.clone());
    env.tasks.spawn(async move {
        let ran = asks.run(done).await;
        drop(near_task);
        let _the_waiter_gave_up = tell.send(ran);
    });
    env.tasks.spawn(async move {
        let Ok((send, recv)) = far.accept_bi().await else { return };
        let side = Side { env: far_env, routes: here, other: THERE, send, recv, stopped };
        // It ends when it is told to, or with the connection, which the other side sees.
        let _ended = side.run(never).await;
    });
    let copied = tokio::time::timeout(COPY_WITHIN, told).await;
    let _nobody_is_left = stop.send(true);
    let Ok(Ok(ran)) = copied else { bail!("the copy was not complete within {} s", COPY_WITHIN.as_secs()) };
    let there = ran?;
    let took = env.clock.now().saturating_sub(begun);
    let bytes = there.parts(env.clock.now()).map(|part| part.bytes).sum();
    Ok((took, bytes, there))
}

/// One end of the link.
struct Side {
    env: Env,
    routes: Routes,
    other: Holder,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    stopped: watch::Receiver<bool>,
}

impl Side {
    /// Until it is done, or told to stop.
    async fn run(self, done: impl Fn(&Routes) -> bool) -> Result<Routes> {
        let Self { env, mut routes, other, mut send, recv, mut stopped } = self;
        let mut frames = QuicFrames::new(recv, NODE_FRAME_BYTES);
        let mut writer = FrameWriter::new();
        // The link is new, whatever was said on none.
        routes.down(other);
        routes.take_outputs();
        routes.up(env.clock.now(), other);
        loop {
            for (_, body) in routes.take_outputs() {
                writer.put(&NodeFrame { body: Some(body) });
            }
            writer.write(&mut send).await?;
            let deadline = routes.next_deadline().map_or(TICK, |at| at.saturating_sub(env.clock.now())).min(TICK);
            tokio::select! {
                biased;
                _ = stopped.changed() => return Ok(routes),
                frame = frames.next::<NodeFrame>() => {
                    let body = frame?.context("the link ended")?.body.context("a frame of a newer version")?;
                    routes.told(env.clock.now(), other, &body)?;
                    if matches!(body, tern_core::wire::node_v1::node_frame::Body::RouteChunk(_)) && done(&routes) {
                        return Ok(routes);
                    }
                }
                () = tokio::time::sleep(deadline) => {}
            }
            routes.tick(env.clock.now());
        }
    }
}
