//! Second answers to Pings.

use super::*;

fn ping(echo: u32, again_ms: u32) -> v1::frame::Body {
    v1::frame::Body::Ping(v1::Ping { echo, again_ms, ..v1::Ping::default() })
}

/// Echoes of the second answers so far, and after how long the last first answer said that one would come.
fn pongs(w: &mut World, c: Conn) -> (Vec<u32>, u32) {
    let (mut seconds, mut promised) = (Vec::new(), 0);
    for frame in &w.told(c).frames {
        if let Some(v1::frame::Body::Pong(pong)) = &frame.body {
            if pong.again {
                assert_eq!((frame.req, pong.again_ms), (0, 0));
                seconds.push(pong.echo);
            } else {
                promised = pong.again_ms;
            }
        }
    }
    (seconds, promised)
}

#[test]
fn a_ping_is_answered_once_more_when_it_asks_and_the_last_one_counts() {
    let mut w = World::new();
    let c = w.connect(EU, 1, "alice", "phone");
    w.frame(c, 2, ping(1, 0));
    w.pass(Duration::from_secs(2));
    assert_eq!(pongs(&mut w, c), (vec![], 0));
    w.frame(c, 3, ping(2, 5_000));
    w.pass(Duration::from_secs(4));
    assert_eq!(pongs(&mut w, c), (vec![], 5_000));
    // One that does not ask leaves it, one that asks replaces it.
    w.frame(c, 4, ping(3, 0));
    w.pass(Duration::from_secs(2));
    assert_eq!(pongs(&mut w, c).0, [2]);
    w.frame(c, 5, ping(4, 5_000));
    w.pass(Duration::from_secs(3));
    w.frame(c, 6, ping(5, 5_000));
    w.pass(Duration::from_secs(20));
    assert_eq!(pongs(&mut w, c).0, [2, 5]);
    // No more often than once a second, and not for ever.
    w.frame(c, 7, ping(6, 1));
    assert_eq!(pongs(&mut w, c).1, 1_000);
    w.frame(c, 8, ping(7, u32::MAX));
    assert_eq!(pongs(&mut w, c).1, 3_600_000);
    w.ups(EU, 1, vec![Up::Close { conn: 1 }]);
    w.pass(Duration::from_secs(3_700));
    assert_eq!(pongs(&mut w, c).0, [2, 5], "nothing is kept of who has gone");
}
