//! The way between two regions of a local system: datagrams pass, until the link is taken down.
//!
//! Regions speak QUIC to each other, each to an address that its configuration names. Here that is a relay's, which hands
//! datagrams on from a socket of its own for each sender; so a link can be cut without root. Both directions of a link
//! have a relay each and share one switch.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Longer than any datagram.
const BUFFER: usize = 65_536;
/// So often a thread looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The switch of a link.
#[derive(Clone, Debug, Default)]
pub struct Switch {
    down: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

impl Switch {
    /// Nothing passes any more, or everything again.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    fn is_down(&self) -> bool {
        self.down.load(Ordering::SeqCst)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// A direction of a link. Its threads end soon after it is dropped.
#[derive(Debug)]
pub struct Relay {
    at: SocketAddr,
    switch: Switch,
}

impl Relay {
    /// Begins to hand on what comes, to `to`.
    pub fn start(to: SocketAddr, switch: &Switch) -> io::Result<Self> {
        // All directions share the switch; each ends for itself.
        let switch = Switch { down: Arc::clone(&switch.down), over: Arc::default() };
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
        front.set_read_timeout(Some(LOOK_EVERY))?;
        let at = front.local_addr()?;
        let of_thread = switch.clone();
        thread::Builder::new().name("relay".to_owned()).spawn(move || forth(&front, to, &of_thread))?;
        Ok(Self { at, switch })
    }

    /// Where it is reached.
    pub fn address(&self) -> SocketAddr {
        self.at
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.switch.over.store(true, Ordering::SeqCst);
    }
}

/// What comes from the front, each sender by a socket of its own.
fn forth(front: &Arc<UdpSocket>, to: SocketAddr, switch: &Switch) {
    let mut senders: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut buffer = vec![0; BUFFER];
    while !switch.is_over() {
        let Ok((length, from)) = front.recv_from(&mut buffer) else { continue };
        if switch.is_down() {
            continue;
        }
        let back = match senders.get(&from) {
            Some(back) => Arc::clone(back),
            None => {
                let Ok(back) = open(front, from, to, switch) else { continue };
                senders.insert(from, Arc::clone(&back));
                back
            }
        };
        // As on any way, what does not fit is lost.
        let _lost = back.send(&buffer[..length]);
    }
}

fn open(front: &Arc<UdpSocket>, from: SocketAddr, to: SocketAddr, switch: &Switch) -> io::Result<Arc<UdpSocket>> {
    let back = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
    back.connect(to)?;
    back.set_read_timeout(Some(LOOK_EVERY))?;
    let (front, socket, switch) = (Arc::clone(front), Arc::clone(&back), switch.clone());
    thread::Builder::new().name("relay back".to_owned()).spawn(move || {
        let mut buffer = vec![0; BUFFER];
        while !switch.is_over() {
            let Ok(length) = socket.recv(&mut buffer) else { continue };
            if !switch.is_down() {
                let _lost = front.send_to(&buffer[..length], from);
            }
        }
    })?;
    Ok(back)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_pass_both_ways_and_none_while_the_link_is_down() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        let switch = Switch::default();
        let relay = Relay::start(server.local_addr().unwrap(), &switch).unwrap();
        let mut buffer = [0; 10];
        client.send_to(b"one", relay.address()).unwrap();
        let (_, by) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"two", by).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (3, relay.address()));
        switch.set_down(true);
        client.send_to(b"lost", relay.address()).unwrap();
        // The relay takes what comes in order: once it has seen a later switch, the lost one is behind it.
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(server.recv_from(&mut buffer).is_err());
        switch.set_down(false);
        server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.send_to(b"last", relay.address()).unwrap();
        let (length, again) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], again), (&b"last"[..], by));
    }
}
