//! Histories of one session's requests.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::*;
use proptest::prelude::*;

const NOW: Duration = Duration::from_secs(5);

fn exchange() -> Exchange {
    Exchange::new(EdgeMetrics::default(), at(1), b"\x01h", NOW)
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// What the driver reads now.
fn read(exchange: &Exchange) -> Vec<u8> {
    let mut reader = FrameReader::new(1000);
    match exchange.poll_read(&mut reader, &mut cx()) {
        Poll::Ready(Ok(_)) => reader.buffer().to_vec(),
        Poll::Ready(Err(e)) => panic!("{e}"),
        Poll::Pending => Vec::new(),
    }
}

/// What the driver writes; false if there is no room.
fn write(exchange: &Exchange, bytes: &[u8]) -> bool {
    exchange.poll_write(&mut BytesMut::from(bytes), &mut cx()).is_ready()
}

fn ready(exchange: &Exchange, turn: u64) -> bool {
    exchange.poll_answer(turn, &mut cx()).is_ready()
}

/// A whole request that is answered at once.
fn ask(exchange: &Exchange, number: u64, body: &[u8]) -> Result<Bytes, Misfit> {
    let turn = exchange.arrive(number, at(2), NOW)?;
    match exchange.take_in(turn, number, body)? {
        Taken::Answered(answer) => Ok(answer),
        Taken::Waits => exchange.give(turn, number, NOW),
    }
}

fn welcomed() -> Exchange {
    let exchange = exchange();
    assert_eq!(read(&exchange), b"\x01h");
    let turn = exchange.arrive(0, at(1), NOW).unwrap();
    assert!(!ready(&exchange, turn));
    write(&exchange, b"\x01w");
    assert!(ready(&exchange, turn));
    assert_eq!(exchange.give(turn, 0, NOW).unwrap(), "\x01w");
    exchange
}

#[test]
fn a_request_that_comes_again_is_answered_the_same_and_read_once() {
    let exchange = welcomed();
    write(&exchange, b"one");
    assert_eq!(ask(&exchange, 1, b"a").unwrap(), "one");
    write(&exchange, b"two");
    for _ in 0..3 {
        assert_eq!(ask(&exchange, 1, b"a").unwrap(), "one");
    }
    assert_eq!(read(&exchange), b"a");
    assert_eq!(ask(&exchange, 2, b"b").unwrap(), "two");
    assert_eq!(ask(&exchange, 1, b"a").unwrap(), "one", "two are kept");
    assert_eq!(ask(&exchange, 3, b"").unwrap(), "");
    assert_eq!(ask(&exchange, 1, b"a"), Err(Misfit::Number(1)));
    assert_eq!(ask(&exchange, 5, b"x"), Err(Misfit::Number(5)));
    assert_eq!(read(&exchange), b"b");
    assert_eq!(exchange.peer(), at(2));
}

#[test]
fn a_newer_request_ends_the_one_that_waits_and_gets_what_comes() {
    let exchange = welcomed();
    let first = exchange.arrive(1, at(1), NOW).unwrap();
    assert_eq!(exchange.take_in(first, 1, b"a"), Ok(Taken::Waits));
    assert!(!ready(&exchange, first));
    let second = exchange.arrive(2, at(1), NOW).unwrap();
    assert!(ready(&exchange, first), "woken to end");
    write(&exchange, b"news");
    assert_eq!(exchange.take_in(second, 2, b"b"), Ok(Taken::Waits));
    assert!(exchange.poll_superseded(first, &mut cx()).is_ready());
    assert!(exchange.poll_superseded(second, &mut cx()).is_pending());
    assert_eq!(exchange.give(second, 2, NOW).unwrap(), "news");
    assert_eq!(exchange.give(first, 1, NOW).unwrap(), "", "decided when the second was taken, whichever ends first");
    assert_eq!((ask(&exchange, 1, b"a").unwrap(), ask(&exchange, 2, b"b").unwrap()), ("".into(), "news".into()));
    assert_eq!(read(&exchange), b"ab");
}

#[test]
fn what_is_answered_already_takes_the_turn_of_nobody_who_waits() {
    let exchange = welcomed();
    let first = exchange.arrive(1, at(1), NOW).unwrap();
    assert_eq!(exchange.take_in(first, 1, b"a"), Ok(Taken::Waits));
    let second = exchange.arrive(2, at(1), NOW).unwrap();
    assert_eq!(exchange.take_in(second, 2, b"b"), Ok(Taken::Waits));
    assert_eq!(exchange.give(first, 1, NOW).unwrap(), "");
    // That answer is lost, and asked for again.
    let again = exchange.arrive(1, at(1), NOW).unwrap();
    assert!(exchange.poll_superseded(again, &mut cx()).is_pending(), "its body is read to the end");
    assert_eq!(exchange.take_in(again, 1, b"a"), Ok(Taken::Answered(Bytes::new())));
    assert_eq!(ask(&exchange, 1, b"a").unwrap(), "");
    assert!(!ready(&exchange, second), "it goes on waiting");
    write(&exchange, b"news");
    assert!(ready(&exchange, second));
    assert_eq!(exchange.give(second, 2, NOW).unwrap(), "news");
    assert_eq!(read(&exchange), b"ab");
}

#[test]
fn a_request_that_comes_again_while_it_waits_is_answered_the_second_time_only() {
    let exchange = welcomed();
    let first = exchange.arrive(1, at(1), NOW).unwrap();
    assert_eq!(exchange.take_in(first, 1, b"a"), Ok(Taken::Waits));
    let again = exchange.arrive(1, at(1), NOW).unwrap();
    assert_eq!(exchange.take_in(again, 1, b"a"), Ok(Taken::Waits));
    write(&exchange, b"news");
    assert_eq!(exchange.give(first, 1, NOW), Err(Misfit::Repeated));
    assert_eq!(exchange.give(again, 1, NOW).unwrap(), "news");
    assert_eq!(read(&exchange), b"a");
    // Likewise if its body was not there yet.
    let slow = exchange.arrive(2, at(1), NOW).unwrap();
    let again = exchange.arrive(2, at(1), NOW).unwrap();
    assert_eq!(exchange.take_in(again, 2, b"b"), Ok(Taken::Waits));
    assert_eq!(exchange.take_in(slow, 2, b"b"), Err(Misfit::Repeated));
    assert_eq!(read(&exchange), b"b");
}

/// What a client may do that repeats requests, sends newer ones before older are answered, and loses answers.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The next request begins, with a body.
    Next,
    /// The last but so many comes again.
    Again(u64),
    /// The request that began so many ago is answered, or is told why not.
    Answer(usize),
    /// The session writes.
    Write,
}

proptest! {
    #[test]
    fn bodies_are_read_once_and_answers_told_once_whatever_is_lost(
        steps in proptest::collection::vec(
            prop_oneof![Just(Step::Next), (0u64..3).prop_map(Step::Again), (0usize..4).prop_map(Step::Answer),
                Just(Step::Write)],
            0..60,
        ),
    ) {
        let exchange = welcomed();
        let (mut last, mut written, mut got) = (0u64, Vec::new(), Vec::new());
        let mut under_way: Vec<(u64, u64)> = Vec::new();
        let mut answers: BTreeMap<u64, Bytes> = BTreeMap::new();
        let mut note = |number: u64, answer: Bytes| match answers.entry(number) {
            Entry::Occupied(known) => assert_eq!(*known.get(), answer, "the answer of {number} changed"),
            Entry::Vacant(free) => { free.insert(answer); }
        };
        let mut begin = |number: u64, under_way: &mut Vec<(u64, u64)>, note: &mut dyn FnMut(u64, Bytes)| {
            let Ok(turn) = exchange.arrive(number, at(1), NOW) else { return false };
            match exchange.take_in(turn, number, &[u8::try_from(number).unwrap()]) {
                Ok(Taken::Answered(answer)) => note(number, answer),
                Ok(Taken::Waits) => under_way.push((turn, number)),
                Err(e) => panic!("{e}"),
            }
            got.extend(read(&exchange));
            true
        };
        for step in steps {
            match step {
                Step::Next => {
                    last += 1;
                    assert!(begin(last, &mut under_way, &mut note));
                }
                Step::Again(back) if back < last => {
                    assert_eq!(begin(last - back, &mut under_way, &mut note), back < 2);
                }
                Step::Again(_) => {}
                Step::Answer(back) if back < under_way.len() => {
                    let (turn, number) = under_way.remove(under_way.len() - 1 - back);
                    match exchange.give(turn, number, NOW) {
                        Ok(answer) => note(number, answer),
                        Err(Misfit::Repeated) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
                Step::Answer(_) => {}
                Step::Write => {
                    let byte = u8::try_from(written.len()).unwrap();
                    written.push(byte);
                    assert!(write(&exchange, &[byte]));
                }
            }
        }
        // One more answers all that is left.
        note(last + 1, ask(&exchange, last + 1, &[u8::try_from(last + 1).unwrap()]).unwrap());
        got.extend(read(&exchange));
        let bodies: Vec<u8> = (1..=u8::try_from(last + 1).unwrap()).collect();
        prop_assert_eq!(got, bodies, "each body once and in order");
        let told: Vec<u8> = answers.values().flatten().copied().collect();
        prop_assert_eq!(told, written, "each byte once and in order");
    }
}

#[test]
fn buffers_are_bounded_on_both_sides_counted_and_given_back() {
    let metrics = EdgeMetrics::default();
    let exchange = Exchange::new(metrics.clone(), at(1), b"", NOW);
    ask(&exchange, 1, &vec![0; BODY_BYTES]).unwrap();
    assert_eq!(ask(&exchange, 2, b"x"), Err(Misfit::Full));
    assert_eq!(metrics.buffer_bytes.get(), i64::try_from(BODY_BYTES).unwrap());
    read(&exchange);
    assert_eq!(ask(&exchange, 2, b"x").unwrap(), "", "nothing had changed");
    assert!(write(&exchange, &[1; OUT_BYTES - 1]) && write(&exchange, &[2; 100]));
    assert!(!write(&exchange, b"more"));
    assert_eq!(ask(&exchange, 3, b"").unwrap().len(), OUT_BYTES + 99);
    assert!(write(&exchange, b"more"));
    assert!(metrics.buffer_bytes.get() > 64 * 1024);
    drop(exchange);
    assert_eq!(metrics.buffer_bytes.get(), 0);
}

#[test]
fn after_the_end_the_last_words_are_told_and_can_be_asked_for_again() {
    let exchange = welcomed();
    exchange.hang_up();
    let ended = exchange.poll_read(&mut FrameReader::new(10), &mut cx());
    assert!(matches!(ended, Poll::Ready(Ok(0))));
    let turn = exchange.arrive(1, at(1), NOW).unwrap();
    assert_eq!(exchange.take_in(turn, 1, b""), Ok(Taken::Waits));
    exchange.end(BytesMut::from(&b"bye"[..]));
    assert!(ready(&exchange, turn));
    assert_eq!(exchange.give(turn, 1, NOW).unwrap(), "bye");
    assert_eq!(ask(&exchange, 1, b"").unwrap(), "bye");
    assert_eq!(ask(&exchange, 2, b""), Err(Misfit::Over));
}
