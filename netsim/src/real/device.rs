//! The process of a device: the client library over real sockets, with an app that does as it is told.
//!
//! It is the app of virtual time ([`crate::stage::app`]), which knows nothing of simulations; only where its orders come
//! from and where its story goes to are others. Its store is a directory that outlives the process, as on a phone.

use std::io::{self, BufRead, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tern_client::{Client, ClientConfig, DispatchServer, StaticToken, UserId};
use tern_netsim_verdict::Event;
use tokio::sync::mpsc;

use super::error::RealError;
use super::protocol::{Order, Report, Setup, Shown, Standing, conversation};
use crate::stage::app::{App, Memory, Names};
use crate::stage::scribe::Scribe;

/// What happened is told so often. It carries its own time.
const TELL_EVERY: Duration = Duration::from_millis(10);
/// Orders that wait: more than a load writes while a busy machine is slow.
const ORDERS_WAITING: usize = 10_000;

/// Nanoseconds of the clock that all processes of this machine share.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Runs a device until its input ends.
pub fn run() -> Result<(), RealError> {
    // Where a simulation's randomness takes the place of the system's, it must not be the same in each device.
    crate::random::seed_from_system().map_err(RealError::io("reading /dev/urandom"))?;
    let mut first = String::new();
    io::stdin().lock().read_line(&mut first).map_err(RealError::io("reading the set-up"))?;
    let setup: Setup = serde_json::from_str(&first).map_err(|error| RealError::Name(format!("the set-up: {error}")))?;
    let (orders, queue) = mpsc::channel(ORDERS_WAITING);
    let reader = std::thread::Builder::new().name("orders".to_owned()).spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match serde_json::from_str::<Order>(&line) {
                Ok(order) => {
                    if orders.blocking_send(order).is_err() {
                        return;
                    }
                }
                Err(error) => eprintln!("an order makes no sense: {error}"),
            }
        }
    });
    reader.map_err(RealError::io("starting a thread"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.map_err(RealError::io("making a runtime"))?.block_on(live(setup, queue))
}

async fn live(setup: Setup, mut orders: mpsc::Receiver<Order>) -> Result<(), RealError> {
    let user = UserId::new(&setup.user).map_err(|error| RealError::Name(error.to_string()))?;
    let mut config = ClientConfig::new(user);
    let server = |(address, server_name): &(String, String)| DispatchServer {
        address: address.clone(),
        server_name: server_name.clone(),
    };
    config.dispatch = setup.dispatch.iter().map(server).collect();
    config.roots_pem = std::fs::read(&setup.roots).map_err(RealError::io("reading the roots"))?;
    let client = Client::builder(config)
        .store(&setup.store)
        .token_provider(Arc::new(StaticToken(setup.token.clone())))
        .build()
        .map_err(|error| RealError::Name(format!("the client of {}: {error}", setup.device)))?;
    let names = Arc::new(Names::default());
    for (id, label) in &setup.names {
        learn(&names, id, label);
    }
    let zero_ns = setup.zero_ns;
    let scribe = Scribe::new(Box::new(move || monotonic_ns().saturating_sub(zero_ns)), Vec::new());
    let memory = Arc::new(Mutex::new(remembered(&setup, &client)));
    let events = client.events();
    let app = App::open(&setup.device, &setup.user, client, memory, Arc::clone(&names), Arc::clone(&scribe));
    let watch = app.clone().watch(events);
    tokio::pin!(watch);
    let mut tick = tokio::time::interval(TELL_EVERY);
    loop {
        tokio::select! {
            biased;
            () = &mut watch => break,
            order = orders.recv() => match order {
                Some(order) => obey(&app, &names, &scribe, order),
                // The run is over, or gone.
                None => break,
            },
            _ = tick.tick() => {}
        }
        let (lines, reoffered) = scribe.drain();
        for line in lines {
            say(&Report::Happened(line))?;
        }
        if reoffered > 0 {
            say(&Report::Reoffered(reoffered))?;
        }
    }
    Ok(())
}

/// What the user of a device knows that was opened before: its own messages are in its store, with their names.
fn remembered(setup: &Setup, client: &Client) -> Memory {
    let mut memory = Memory::default();
    for (id, _) in &setup.names {
        let Some(id) = conversation(id) else { continue };
        let Ok(shown) = client.conversation(id).timeline(usize::MAX) else { continue };
        for message in shown.messages {
            memory.remember(&setup.device, &message);
        }
    }
    memory
}

fn learn(names: &Names, id: &str, label: &str) {
    if let Some(id) = conversation(id) {
        names.learn(id, label);
    }
}

fn obey(app: &App, names: &Names, scribe: &Scribe, order: Order) {
    let done = match order {
        Order::Learn { conversation, label } => {
            learn(names, &conversation, &label);
            Ok(())
        }
        Order::Send { to, bytes } => {
            app.send(&to, bytes);
            Ok(())
        }
        Order::Act(action) => app.act(&action),
        Order::Network(network) => {
            app.network_changed(network.as_deref());
            Ok(())
        }
        Order::Group { label, members } => app.create_group(&label, &members).map(|()| {
            if let Some(id) = names.id(&label) {
                let named = Report::Named { conversation: id.to_string(), label };
                // Where nobody reads any more, the run is over.
                let _over = say(&named);
            }
        }),
        Order::Look(labels) => {
            let shown = labels.into_iter().map(|(label, asked)| {
                let settings = asked.into_iter().map(|what| Ok((what.clone(), app.setting(&label, &what)?)));
                let shown = settings.collect::<Result<_, String>>().and_then(|settings| {
                    let (messages, unread) = app.timeline(&label)?;
                    Ok(Shown { messages, unread, settings })
                });
                (label, shown)
            });
            let standing = Standing { calm: app.is_calm(), words: app.standing(), shown: shown.collect() };
            let _over = say(&Report::Look(standing));
            Ok(())
        }
    };
    if let Err(text) = done {
        scribe.tell(Event::Broken { who: app.device().to_owned(), text });
    }
}

fn say(report: &Report) -> Result<(), RealError> {
    let line = serde_json::to_string(report).map_err(|error| RealError::Name(error.to_string()))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(RealError::io("telling what happened"))
}
