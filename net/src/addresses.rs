//! The addresses of a name, and trying them (RFC 8305, "Happy Eyeballs").
//!
//! *Problem.* A name has addresses of two families and often several of each. Whichever is tried first may lead nowhere:
//! IPv6 that is announced and does not work, a machine that is down. Waiting for it to time out costs more than a user
//! waits, and giving up after the first costs the connection.
//!
//! *Rule.* Families take turns, the resolver's first choice first. The next address is tried [`STAGGER`] after the last, or
//! as soon as one has failed, beside those under way. The first that is good wins, and the others are dropped.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::env::Net;

/// Time between the beginnings of two attempts (RFC 8305, 8: 250 ms).
pub const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of a name that are tried: one of eight that is good is found within two seconds.
pub const ADDRESSES: usize = 8;

/// One address or more, in the order in which they are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    first: SocketAddr,
    more: Vec<SocketAddr>,
}

impl Addresses {
    /// Of `host:port`, `v4:port` or `[v6]:port`. Fails where it is none of these, or the name has no address.
    pub async fn of(net: &dyn Net, place: &str) -> io::Result<Self> {
        if let Ok(first) = place.parse() {
            return Ok(Self { first, more: Vec::new() });
        }
        let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{place:?} is not host:port"));
        let (host, port) = place.rsplit_once(':').ok_or_else(invalid)?;
        let port: u16 = port.parse().map_err(|_| invalid())?;
        let mut all = in_turn(net.resolve(host).await?).map(|ip| SocketAddr::new(ip, port));
        let none = || io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
        let first = all.next().ok_or_else(none)?;
        Ok(Self { first, more: all.take(ADDRESSES - 1).collect() })
    }

    /// The first to be tried.
    pub fn first(&self) -> SocketAddr {
        self.first
    }

    /// What `attempt` makes of the first address that is good, see the module; of the last that failed, if none is.
    /// Dropping the future gives up all.
    pub async fn race<T, E, F>(&self, mut attempt: impl FnMut(SocketAddr) -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut left = self.more.iter().copied().peekable();
        let mut under_way = vec![Box::pin(attempt(self.first))];
        let mut next = pin!(sleep(STAGGER));
        poll_fn(|cx| {
            loop {
                let (mut at, mut failed) = (0, None);
                while let Some(one) = under_way.get_mut(at) {
                    match one.as_mut().poll(cx) {
                        Poll::Ready(Ok(good)) => return Poll::Ready(Ok(good)),
                        Poll::Ready(Err(e)) => {
                            failed = Some(e);
                            drop(under_way.remove(at));
                        }
                        Poll::Pending => at += 1,
                    }
                }
                let due = failed.is_some() || left.peek().is_none() || next.as_mut().poll(cx).is_ready();
                match (left.next_if(|_| due), failed) {
                    (Some(to), _) => {
                        under_way.push(Box::pin(attempt(to)));
                        next.as_mut().reset(Instant::now() + STAGGER);
                    }
                    (None, Some(e)) if under_way.is_empty() => return Poll::Ready(Err(e)),
                    (None, _) => return Poll::Pending,
                }
            }
        })
        .await
    }
}

/// The families by turns, each in its order, that of the first address first.
fn in_turn(all: Vec<IpAddr>) -> impl Iterator<Item = IpAddr> {
    let six_first = all.first().is_some_and(IpAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) = all.into_iter().partition(|ip| ip.is_ipv6() == six_first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut turn = false;
    std::iter::from_fn(move || {
        turn = !turn;
        if turn { one.next().or_else(|| other.next()) } else { other.next().or_else(|| one.next()) }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_the_resolvers_choice_is_first() {
        let given = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1", "192.0.2.2"];
        let turns = ["2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3"];
        assert_eq!(in_turn(addresses(&given)).collect::<Vec<_>>(), addresses(&turns));
        assert_eq!(in_turn(addresses(&given[3..])).collect::<Vec<_>>(), addresses(&given[3..]));
        assert_eq!(in_turn(Vec::new()).next(), None);
    }

    /// Four addresses of which `good` answers after a while, and the others fail after `fails` or, without it, never.
    async fn race(good: Option<u16>, fails: Option<u64>) -> (Result<u16, String>, Vec<(u16, u64)>, u64) {
        let at = |port| SocketAddr::new([192, 0, 2, 1].into(), port);
        let all = Addresses { first: at(0), more: (1..4).map(at).collect() };
        let (start, begun) = (Instant::now(), Mutex::new(Vec::new()));
        let ms = |at: Instant| u64::try_from((at - start).as_millis()).unwrap();
        let attempt = |to: SocketAddr| {
            begun.lock().unwrap().push((to.port(), ms(Instant::now())));
            async move {
                if good == Some(to.port()) {
                    sleep(Duration::from_millis(40)).await;
                    return Ok(to.port());
                }
                match fails {
                    Some(ms) => sleep(Duration::from_millis(ms)).await,
                    None => std::future::pending().await,
                }
                Err(format!("{} failed", to.port()))
            }
        };
        let result = all.race(attempt).await;
        (result, begun.into_inner().unwrap(), ms(Instant::now()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_begins_after_a_quarter_of_a_second_and_the_first_good_one_wins() {
        assert_eq!(race(Some(0), None).await, (Ok(0), vec![(0, 0)], 40));
        assert_eq!(race(Some(2), None).await, (Ok(2), vec![(0, 0), (1, 250), (2, 500)], 540));
        let last = race(Some(3), Some(100)).await;
        assert_eq!(last, (Ok(3), vec![(0, 0), (1, 100), (2, 200), (3, 300)], 340), "a failure brings on the next");
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_fail_the_last_one_says_why() {
        let (result, begun, after) = race(None, Some(1000)).await;
        assert_eq!((result, begun.len()), (Err("3 failed".to_owned()), 4));
        assert_eq!(begun[3], (3, 750));
        assert_eq!(after, 1750);
    }
}
