//! The TCP messenger's two programs: the machines of [`super::messenger`] and [`super::relay`] over kernel sockets.
//!
//! TCP without Nagle's delay, TLS 1.3 with session tickets, one task per connection that reads and writes at once, and
//! everything that waits goes into one write.

#![expect(clippy::disallowed_methods, reason = "it is another system than tern, over the kernel's sockets only")]

use std::fs;
use std::io::{self, BufRead, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::CompareError;
use super::frame::{Frame, Inbox};
use super::messenger::{Messenger, Output, PING_EVERY};
use super::relay;
use super::told::{Order, SetUp, Told, What, name_of};
use crate::real::device::monotonic_ns;

/// Frames that wait for a connection to take them; one that is so far behind is dead.
const FRAMES_WAITING: usize = 4096;
/// Orders and events that wait for their one reader.
const EVENTS_WAITING: usize = 4096;
/// Bytes read at once: several full segments.
const READ_BYTES: usize = 16 * 1024;
/// A client that says nothing for so long is gone: it missed two pings.
const SILENCE_MAX: Duration = Duration::from_secs(3 * PING_EVERY.as_secs());

/// What a connection tells its owner.
enum Event {
    Connected(mpsc::Sender<Frame>),
    Heard(Frame),
    Gone,
}

/// Runs the relay; it says `ready` when it listens, and goes on until it is killed.
pub fn relay(listen: SocketAddr, chain: &Path, key: &Path) -> Result<(), CompareError> {
    let certificates = read(chain)?;
    let certificates = CertificateDer::pem_slice_iter(&certificates).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| CompareError::Tls(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| CompareError::Tls(error.to_string()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|config| config.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(|error| CompareError::Tls(error.to_string()))?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    runtime()?.block_on(async move {
        let bound = TcpListener::bind(listen).await;
        let listener = bound.map_err(CompareError::io(format!("listening at {listen}")))?;
        println!("ready");
        serve(&listener, &acceptor).await
    })
}

/// One task owns the machine; connections tell it what they hear.
async fn serve(listener: &TcpListener, acceptor: &TlsAcceptor) -> Result<(), CompareError> {
    let (events, mut queue) = mpsc::channel::<(u64, Event)>(EVENTS_WAITING);
    let mut machine = relay::Relay::default();
    let mut writers = std::collections::BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut count = 0;
    loop {
        tokio::select! {
            biased;
            Some((connection, event)) = queue.recv() => match event {
                Event::Connected(writer) => drop(writers.insert(connection, writer)),
                Event::Heard(frame) => machine.heard(connection, frame),
                Event::Gone => {
                    writers.remove(&connection);
                    machine.gone(connection);
                }
            },
            accepted = listener.accept() => {
                let (stream, _) = accepted.map_err(CompareError::io("accepting a connection"))?;
                count += 1;
                tasks.spawn(attend(count, stream, acceptor.clone(), events.clone()));
            }
            Some(_) = tasks.join_next() => {}
        }
        while let Some(output) = machine.poll_output() {
            match output {
                relay::Output::Write(connection, frame) => {
                    let written = writers.get(&connection).is_none_or(|writer| writer.try_send(frame).is_ok());
                    if !written {
                        writers.remove(&connection);
                    }
                }
                // Without its writer a connection ends.
                relay::Output::Close(connection) => drop(writers.remove(&connection)),
            }
        }
    }
}

/// A connection of the relay, from its first byte to its last.
async fn attend(number: u64, stream: TcpStream, acceptor: TlsAcceptor, events: mpsc::Sender<(u64, Event)>) {
    let shaken = async {
        stream.set_nodelay(true)?;
        acceptor.accept(stream).await
    };
    if let Ok(Ok(stream)) = tokio::time::timeout(SILENCE_MAX, shaken).await {
        let (writer, frames) = mpsc::channel(FRAMES_WAITING);
        let numbered = |event| (number, event);
        if events.send(numbered(Event::Connected(writer))).await.is_ok() {
            carry(stream, frames, Some(SILENCE_MAX), &events, numbered).await;
        }
    }
    // Nobody listens only when all is over.
    let _over = events.send((number, Event::Gone)).await;
}

/// Carries frames both ways until either ends, or nothing has come for so long.
async fn carry<E>(
    stream: impl AsyncRead + AsyncWrite,
    mut frames: mpsc::Receiver<Frame>,
    silence_max: Option<Duration>,
    events: &mpsc::Sender<E>,
    event: impl Fn(Event) -> E,
) {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let read = async {
        let (mut inbox, mut bytes) = (Inbox::default(), vec![0; READ_BYTES]);
        loop {
            let come = reading.read(&mut bytes);
            let come = match silence_max {
                Some(within) => tokio::time::timeout(within, come).await.unwrap_or(Ok(0)),
                None => come.await,
            };
            let Ok(count @ 1..) = come else { return };
            inbox.extend(&bytes[..count]);
            while let Some(frame) = inbox.next_frame() {
                let Ok(frame) = frame else { return };
                if events.send(event(Event::Heard(frame))).await.is_err() {
                    return;
                }
            }
        }
    };
    let write = async {
        while let Some(frame) = frames.recv().await {
            let mut bytes = frame.to_bytes();
            while let Ok(frame) = frames.try_recv() {
                bytes.extend(frame.to_bytes());
            }
            if writing.write_all(&bytes).await.is_err() || writing.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = read => {}, () = write => {} }
}

/// Runs a client until its input ends.
pub fn messenger() -> Result<(), CompareError> {
    // This program's randomness is a simulation's: it must not be the same in each client.
    let mut seed = [0; 8];
    let drawn = fs::File::open("/dev/urandom").and_then(|mut file| io::Read::read_exact(&mut file, &mut seed));
    drawn.map_err(CompareError::io("reading /dev/urandom"))?;
    let seed = u64::from_le_bytes(seed);
    crate::random::seed(seed);
    let mut first = String::new();
    io::stdin().lock().read_line(&mut first).map_err(CompareError::io("reading the set-up"))?;
    let set_up: SetUp =
        serde_json::from_str(&first).map_err(|error| CompareError::Line(format!("the set-up: {error}")))?;
    let (orders, queue) = mpsc::channel(EVENTS_WAITING);
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
    reader.map_err(CompareError::io("starting a thread"))?;
    let connector = connector(&set_up.roots)?;
    runtime()?.block_on(live(&set_up, seed, connector, queue))
}

fn connector(roots: &Path) -> Result<TlsConnector, CompareError> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&read(roots)?) {
        let added = root.map_err(|error| error.to_string()).and_then(|root| store.add(root).map_err(|e| e.to_string()));
        added.map_err(CompareError::Tls)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| CompareError::Tls(error.to_string()))?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// What a client's one connection is.
struct Line {
    /// Its task ends when this is dropped.
    tasks: JoinSet<()>,
    /// What is heard of an earlier one is nothing.
    number: u64,
    writer: Option<mpsc::Sender<Frame>>,
}

async fn live(
    set_up: &SetUp,
    seed: u64,
    connector: TlsConnector,
    mut orders: mpsc::Receiver<Order>,
) -> Result<(), CompareError> {
    let name = ServerName::try_from(set_up.server_name.clone());
    let name = name.map_err(|error| CompareError::Tls(format!("{}: {error}", set_up.server_name)))?;
    let (events, mut queue) = mpsc::channel::<(u64, Event)>(EVENTS_WAITING);
    let mut machine = Messenger::new(now(), &set_up.user, seed);
    let mut line = Line { tasks: JoinSet::new(), number: 0, writer: None };
    // The names of what was not acknowledged yet.
    let mut names = std::collections::BTreeMap::new();
    loop {
        let wait = machine.deadline().saturating_sub(now());
        tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::Send { to, text }) => {
                    say(set_up, What::Sent, Some(name_of(&text)))?;
                    let id = machine.send(&to, &text);
                    names.insert(id, name_of(&text));
                }
                Some(Order::Network(_)) => machine.network_changed(now()),
                // The run is over, or gone.
                None => return Ok(()),
            },
            Some((number, event)) = queue.recv() => if number == line.number {
                match event {
                    Event::Connected(writer) => {
                        line.writer = Some(writer);
                        machine.connected();
                    }
                    Event::Heard(frame) => machine.heard(now(), frame),
                    Event::Gone => machine.gone(now()),
                }
            },
            () = tokio::time::sleep(wait) => machine.tick(now()),
        }
        while let Some(output) = machine.poll_output() {
            match output {
                Output::Connect => {
                    line = Line { tasks: JoinSet::new(), number: line.number + 1, writer: None };
                    let (number, server, events) = (line.number, set_up.server, events.clone());
                    line.tasks.spawn(connect(number, server, name.clone(), connector.clone(), events));
                }
                Output::Write(frame) => {
                    let full = line.writer.as_ref().is_some_and(|writer| writer.try_send(frame).is_err());
                    if full {
                        line.writer = None;
                        machine.gone(now());
                    }
                }
                Output::Close => line = Line { tasks: JoinSet::new(), number: line.number + 1, writer: None },
                Output::Live => say(set_up, What::Live, None)?,
                Output::Lost => say(set_up, What::Lost, None)?,
                Output::Acked(id) => say(set_up, What::Acked, names.remove(&id))?,
                Output::Show(text) => say(set_up, What::Shown, Some(name_of(&text)))?,
            }
        }
    }
}

/// A connection of a client, from its first byte to its last.
async fn connect(
    number: u64,
    server: SocketAddr,
    name: ServerName<'static>,
    connector: TlsConnector,
    events: mpsc::Sender<(u64, Event)>,
) {
    let connected = async {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        connector.connect(name, stream).await
    };
    match connected.await {
        Ok(stream) => {
            let (writer, frames) = mpsc::channel(FRAMES_WAITING);
            let numbered = |event| (number, event);
            if events.send(numbered(Event::Connected(writer))).await.is_ok() {
                carry(stream, frames, None, &events, numbered).await;
            }
        }
        Err(error) => eprintln!("no connection to {server}: {error}"),
    }
    // Nobody listens only when all is over.
    let _over = events.send((number, Event::Gone)).await;
}

fn say(set_up: &SetUp, what: What, message: Option<String>) -> Result<(), CompareError> {
    let told = Told { at_ns: monotonic_ns().saturating_sub(set_up.zero_ns), what, message };
    let line = serde_json::to_string(&told).map_err(|error| CompareError::Line(error.to_string()))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(CompareError::io("telling what happened"))
}

fn now() -> Duration {
    Duration::from_nanos(monotonic_ns())
}

fn read(path: &Path) -> Result<Vec<u8>, CompareError> {
    fs::read(path).map_err(CompareError::io(format!("reading {}", path.display())))
}

fn runtime() -> Result<tokio::runtime::Runtime, CompareError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(CompareError::io("making a runtime"))
}
