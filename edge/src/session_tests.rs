use super::*;
use crate::tokens::tests::{WALL_MS, keys, sign, token};
use tern_core::edge_api::{Ack, Page};
use tern_core::ids::{ConvId, Place};
use v1::error::Retry;

struct Scene {
    config: EdgeConfig,
    keys: RwLock<Arc<TokenKeys>>,
    paces: Paces,
    load: Load,
    metrics: EdgeMetrics,
    now: Duration,
    wall_ms: u64,
    connections: usize,
    core: bool,
    draining: bool,
    pressed: bool,
    crowded: bool,
    peer: SocketAddr,
    session: Session,
}

impl Scene {
    fn new() -> Self {
        let config = EdgeConfig { name: "e1".into(), ..EdgeConfig::default() };
        Self {
            session: Session::new(Duration::ZERO, config.limits.hello_timeout),
            paces: Paces::new(config.limits.sends_per_second, config.limits.sends_burst),
            load: Load::default(),
            config,
            keys: RwLock::new(Arc::new(keys())),
            metrics: EdgeMetrics::default(),
            now: Duration::ZERO,
            wall_ms: WALL_MS,
            connections: 0,
            core: true,
            draining: false,
            pressed: false,
            crowded: false,
            peer: "192.0.2.1:5".parse().unwrap(),
        }
    }

    fn live() -> Self {
        let mut scene = Self::new();
        scene.say(Lane::Control, 1, Body::Hello(hello("alice"))).unwrap();
        scene.welcome();
        scene
    }

    fn welcome(&mut self) -> v1::Welcome {
        let welcome =
            v1::Welcome { limits: Some(v1::Limits { in_flight: 999, ..Default::default() }), ..Default::default() };
        match self.completed(Body::Welcome(welcome)) {
            Body::Welcome(welcome) => welcome,
            other => panic!("a Welcome became {other:?}"),
        }
    }

    /// A frame of the core as the client gets it.
    fn completed(&mut self, body: Body) -> Body {
        let mut down = DownBody::Frame(Box::new(v1::Frame::new(1, body)));
        self.down(&mut down);
        match down {
            DownBody::Frame(frame) => frame.body.expect("the frame keeps its body"),
            other => panic!("a frame became {other:?}"),
        }
    }

    fn with<T>(&mut self, f: impl FnOnce(&mut Session, &Context<'_>) -> T) -> T {
        let tuning = ArcSwap::from_pointee(Tuning::of(&self.config));
        let cx = Context {
            conn: 7,
            peer: self.peer,
            transport: "quic",
            now: self.now,
            wall_ms: self.wall_ms,
            connections: self.connections,
            core_reachable: self.core,
            core_whole: self.core,
            core_generation: 0,
            draining: self.draining,
            pressed: self.pressed,
            crowded: self.crowded,
            keys: &self.keys,
            config: &self.config,
            tuning: &tuning,
            paces: &self.paces,
            load: &self.load,
            metrics: &self.metrics,
        };
        f(&mut self.session, &cx)
    }

    fn raw(&mut self, lane: Option<Lane>, bytes: &[u8]) -> Result<Outcome, Refusal> {
        let bytes = Bytes::copy_from_slice(bytes);
        self.with(|s, cx| {
            let mut out = Outcome::default();
            s.frame(lane, bytes, cx, &mut out).map(|()| out)
        })
    }

    fn say(&mut self, lane: Lane, req: u32, body: Body) -> Result<Outcome, Refusal> {
        self.raw(Some(lane), &v1::Frame::new(req, body).encode_to_vec())
    }

    /// The frame on its own lane.
    fn tell(&mut self, req: u32, body: Body) -> Result<Outcome, Refusal> {
        let lane = v1::Frame::new(req, body.clone()).lane().unwrap_or(Lane::Control);
        self.say(lane, req, body)
    }

    fn down(&mut self, body: &mut DownBody) -> Option<Lane> {
        self.with(|s, cx| s.down(body, cx))
    }

    fn tick(&mut self) -> Result<Outcome, Refusal> {
        self.with(|s, cx| {
            let mut out = Outcome::default();
            s.tick(cx, &mut out).map(|()| out)
        })
    }

    fn may_read(&self, lane: Lane) -> bool {
        self.session.may_read(Some(lane), &self.config, false)
    }
}

fn hello(user: &str) -> v1::Hello {
    v1::Hello { versions: vec![1], token: token(user), install: "phone".into(), ..v1::Hello::default() }
}

fn send(n: u64) -> Body {
    Body::Send(v1::Send { n, body: "hi".into(), conversation_id: vec![1; 16].into(), ..v1::Send::default() })
}

fn pull() -> v1::PullEntries {
    v1::PullEntries {
        conversation: vec![1; 16].into(),
        origin: Some(v1::Origin { region: 1, era: 2 }),
        from: 1,
        to: 5,
        ..v1::PullEntries::default()
    }
}

fn code(result: Result<Outcome, Refusal>) -> Code {
    result.unwrap_err().code
}

/// The one error in `out`: req and code.
fn error(out: &Outcome) -> (u32, Code, Retry, u32) {
    assert!(out.ups.is_empty(), "{out:?}");
    match &out.answers[..] {
        [(_, v1::Frame { req, body: Some(Body::Error(e)) })] => {
            (*req, Code::from_u32(e.code).unwrap(), Retry::try_from(e.retry).unwrap(), e.retry_after_ms)
        }
        _ => panic!("{out:?}"),
    }
}

#[test]
fn a_hello_goes_to_the_core_without_its_token_and_the_welcome_is_completed() {
    let mut scene = Scene::new();
    let out = scene.say(Lane::Control, 3, Body::Hello(hello("alice"))).unwrap();
    let [Up::Open { conn: 7, req: 3, user, install, hello, address, transport: "quic", token_expires_ms, .. }] =
        &out.ups[..]
    else {
        panic!("{out:?}")
    };
    assert_eq!((user.as_str(), install.as_str(), address.as_str()), ("alice", "phone", "192.0.2.1:5"));
    assert!(hello.token.is_empty());
    assert_eq!(*token_expires_ms, WALL_MS + 3_600_000);
    assert!(!Lane::ALL.iter().any(|lane| scene.may_read(*lane)), "nothing is read while the core decides");
    let welcome = scene.welcome();
    assert_eq!((welcome.edge.as_str(), welcome.seen_address.as_str()), ("e1", "192.0.2.1:5"));
    assert_eq!(welcome.limits.unwrap().in_flight, 256);
    assert_eq!(scene.session.phase(), Phase::Live);
}

#[test]
fn hellos_that_are_refused_say_why() {
    let refused = |hello: v1::Hello| code(Scene::new().say(Lane::Control, 1, Body::Hello(hello)));
    let good = || hello("alice");
    assert_eq!(refused(v1::Hello { versions: vec![2, 3], ..good() }), Code::UnsupportedVersion);
    assert_eq!(refused(v1::Hello { install: String::new(), ..good() }), Code::BadId);
    assert_eq!(refused(v1::Hello { install: "x".repeat(65), ..good() }), Code::BadId);
    assert_eq!(refused(v1::Hello { agent: "x".repeat(65), ..good() }), Code::BadFrame);
    assert_eq!(refused(v1::Hello { cursors: vec![v1::Cursor::default(); 65], ..good() }), Code::BadFrame);
    assert_eq!(
        refused(v1::Hello { cursors: vec![v1::Cursor { region: 300, era: 1, rev: 1 }], ..good() }),
        Code::BadFrame
    );
    assert_eq!(refused(v1::Hello { unstable: vec![v1::UnstableLog::default()], ..good() }), Code::BadId);
    assert_eq!(refused(v1::Hello { token: "x".into(), ..good() }), Code::TokenInvalid);
    let mut scene = Scene::new();
    scene.core = false;
    assert_eq!(code(scene.tell(1, Body::Hello(good()))), Code::CoreUnreachable);
    scene.draining = true;
    assert_eq!(code(scene.tell(1, Body::Hello(good()))), Code::Draining);
}

#[test]
fn nothing_but_a_hello_may_come_first_and_no_second_one() {
    let bodies = [send(1), Body::Ping(v1::Ping::default()), Body::Pull(pull()), Body::Commit(v1::Commit::default())];
    for body in bodies {
        assert_eq!(code(Scene::new().tell(1, body)), Code::WrongMoment);
    }
    assert_eq!(code(Scene::new().say(Lane::Bulk, 1, Body::Hello(hello("a")))), Code::WrongMoment);
    assert_eq!(code(Scene::new().raw(None, &[8, 1])), Code::WrongMoment, "an empty frame");
    assert_eq!(code(Scene::live().tell(1, Body::Hello(hello("a")))), Code::WrongMoment);
}

#[test]
fn frames_of_servers_and_frames_on_a_wrong_lane_close() {
    let of_servers = [
        Body::Ack(v1::Ack::default()),
        Body::Push(v1::Push::default()),
        Body::Pong(v1::Pong::default()),
        Body::Advance(v1::Advance::default()),
        Body::Stable(v1::Stable::default()),
        Body::Welcome(v1::Welcome::default()),
        Body::GoAway(v1::GoAway::default()),
        Body::Kick(v1::Kick::default()),
        Body::Error(v1::Error::default()),
        Body::Rows(v1::Rows::default()),
        Body::Page(v1::Page::default()),
    ];
    for body in of_servers {
        assert_eq!(code(Scene::live().tell(1, body)), Code::WrongMoment);
    }
    let on = |lane, body| Scene::live().say(lane, 1, body);
    assert_eq!(code(on(Lane::Control, send(1))), Code::WrongMoment);
    assert_eq!(code(on(Lane::Bulk, Body::Ping(v1::Ping::default()))), Code::WrongMoment);
    assert_eq!(code(on(Lane::Message, Body::Pull(pull()))), Code::WrongMoment);
    let mut scene = Scene::live();
    assert!(scene.raw(None, &v1::Frame::new(1, send(1)).encode_to_vec()).is_ok(), "one stream carries all lanes");
}

#[test]
fn unknown_frames_and_fields_come_from_newer_clients_and_garbage_from_nobody() {
    let mut scene = Scene::live();
    // Field 100 of Frame, which this version does not know: tag 0xa2 0x06, empty message.
    let out = scene.raw(Some(Lane::Message), &[0x08, 9, 0xa2, 0x06, 0]).unwrap();
    assert_eq!(error(&out), (9, Code::BadFrame, Retry::Never, 0));
    let out = scene.raw(Some(Lane::Control), &[0xa2, 0x06, 0]).unwrap();
    assert!(out.answers.is_empty() && out.ups.is_empty());
    let mut ping = v1::Frame::new(4, Body::Ping(v1::Ping::default())).encode_to_vec();
    ping.extend([0xa2, 0x06, 0]);
    assert_eq!(scene.raw(Some(Lane::Control), &ping).unwrap().ups.len(), 1);
    assert_eq!(error(&scene.tell(5, Body::Mark(v1::Mark::default())).unwrap()).1, Code::BadId);
    assert_eq!(error(&scene.tell(5, Body::PullCells(v1::PullCells::default())).unwrap()).1, Code::BadId);
    assert_eq!(error(&scene.tell(5, Body::PullEras(v1::PullEras::default())).unwrap()).1, Code::BadId);
    let origins = vec![v1::Origin { region: 1, era: 1 }; VECTOR_ORIGINS + 1];
    let many = Body::PullEras(v1::PullEras { conversation: vec![1; 16].into(), origins });
    assert_eq!(error(&scene.tell(5, many).unwrap()).1, Code::BadFrame);
    assert_eq!(code(scene.raw(Some(Lane::Control), &[0xff; 9])), Code::BadFrame);
}

#[test]
fn what_concerns_one_request_is_refused_on_it_and_the_rest_goes_on() {
    let mut scene = Scene::live();
    let big = Body::Send(v1::Send {
        n: 1,
        body: vec![0; 65 * 1024].into(),
        conversation_id: vec![1; 16].into(),
        ..v1::Send::default()
    });
    assert_eq!(error(&scene.tell(2, big).unwrap()), (2, Code::BodyTooLarge, Retry::Never, 0));
    let bad_id = Body::Pull(v1::PullEntries { conversation: vec![1; 15].into(), ..pull() });
    assert_eq!(error(&scene.tell(3, bad_id).unwrap()).1, Code::BadId);
    assert_eq!(error(&scene.tell(4, Body::Pull(v1::PullEntries { from: 0, ..pull() })).unwrap()).1, Code::BadFrame);
    let rows = Body::PullRows(v1::PullRows { above: Some(v1::Cursor::default()), limit: 0 });
    assert_eq!(error(&scene.tell(5, rows).unwrap()).1, Code::BadFrame);
    assert_eq!(scene.tell(6, send(1)).unwrap().ups.len(), 1);
    // References that were never defined leave the stream unreadable.
    let undefined = Body::Send(v1::Send { n: 1, conversation: 3, ..v1::Send::default() });
    assert_eq!(code(scene.tell(7, undefined)), Code::BadReference);
    assert_eq!(code(Scene::live().tell(0, send(1))), Code::BadFrame, "a send that can't be answered");
}

#[test]
fn more_sends_than_allowed_are_refused_with_the_time_to_wait() {
    let mut scene = Scene::live();
    for n in 1..=60 {
        assert_eq!(scene.tell(1, send(n)).unwrap().ups.len(), 1);
        let place = Place { hlc: 1, origin: Origin { region: 1, era: 1 }, seq: 1 };
        let ack = Ack {
            place,
            first: None,
            receipt: [0; 16],
            also: vec![],
            receipt_refused: false,
            cut: tern_core::ids::Heads::new(),
        };
        scene.down(&mut DownBody::Ack { req: 1, ack });
    }
    assert_eq!(error(&scene.tell(2, send(61)).unwrap()), (2, Code::RateLimited, Retry::Here, 51));
    scene.now += Duration::from_millis(51);
    assert_eq!(scene.tell(2, send(61)).unwrap().ups.len(), 1);
}

#[test]
fn too_many_open_requests_stop_the_reading_until_some_are_answered() {
    let mut scene = Scene::live();
    for req in 1..=256 {
        assert!(scene.may_read(Lane::Message));
        scene.tell(req, Body::Ping(v1::Ping::default())).unwrap();
    }
    assert!(!Lane::ALL.iter().any(|lane| scene.may_read(*lane)));
    scene.down(&mut DownBody::Frame(Box::new(v1::Frame::new(9, Body::Error(v1::Error::default())))));
    assert!(scene.may_read(Lane::Message));
}

#[test]
fn a_pull_counts_until_its_last_page_and_pulls_do_not_stop_messages() {
    let mut scene = Scene::live();
    for req in 1..=4 {
        scene.tell(req, Body::Pull(pull())).unwrap();
    }
    assert!(!scene.may_read(Lane::Bulk) && scene.may_read(Lane::Message));
    assert!(!scene.session.may_read(None, &scene.config, false));
    let page = |req, last| DownBody::Page {
        req,
        page: Page {
            conversation: ConvId([1; 16]),
            origin: Origin { region: 1, era: 1 },
            entries: vec![],
            gaps: vec![],
            last,
        },
    };
    scene.down(&mut page(2, false));
    assert!(!scene.may_read(Lane::Bulk));
    scene.down(&mut page(2, true));
    assert!(scene.may_read(Lane::Bulk));
    let mut refused = DownBody::Frame(Box::new(v1::Frame::new(3, Body::Error(v1::Error::default()))));
    assert_eq!(scene.down(&mut refused), Some(Lane::Bulk), "an answer travels on the lane of its request");
    assert!(!scene.session.may_read(Some(Lane::Bulk), &scene.config, true));
}

#[test]
fn without_a_core_the_edge_answers_what_it_can() {
    let mut scene = Scene::live();
    scene.core = false;
    let out = scene.tell(3, Body::Ping(v1::Ping { echo: 8, foreground: true, ..v1::Ping::default() })).unwrap();
    match &out.answers[..] {
        [(Lane::Control, v1::Frame { req: 3, body: Some(Body::Pong(pong)) })] => {
            assert!(pong.rev_unknown && pong.echo == 8);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(error(&scene.tell(4, send(1)).unwrap()), (4, Code::CoreUnreachable, Retry::Elsewhere, 0));
    assert_eq!(error(&scene.tell(5, Body::Pull(pull())).unwrap()).1, Code::CoreUnreachable);
}

#[test]
fn a_token_that_ends_is_announced_and_a_fresh_one_of_the_same_user_extends_the_session() {
    let mut scene = Scene::live();
    scene.wall_ms = WALL_MS + 3_540_000;
    let out = scene.tick().unwrap();
    assert_eq!(error(&out), (0, Code::TokenExpired, Retry::NewToken, 0));
    assert!(scene.tick().unwrap().answers.is_empty(), "once");
    let fresh = |user: &str| {
        let now = WALL_MS / 1000;
        sign("old", &serde_json::json!({"sub": user, "iat": now, "exp": now + 7200, "aud": "tern"}))
    };
    let out = scene.tell(5, Body::Token(v1::Token { token: fresh("mallory") })).unwrap();
    assert_eq!(error(&out).1, Code::TokenInvalid);
    let out = scene.tell(6, Body::Token(v1::Token { token: fresh("alice") })).unwrap();
    let taken = Body::TokenTaken(v1::TokenTaken { token_expires_ms: WALL_MS + 7_200_000 });
    assert_eq!(out.answers, [(Lane::Control, v1::Frame::new(6, taken))]);
    assert!(scene.tell(0, Body::Token(v1::Token { token: fresh("alice") })).unwrap().answers.is_empty());
    scene.wall_ms = WALL_MS + 3_700_000;
    assert!(scene.tick().is_ok());
    scene.wall_ms = WALL_MS + 7_200_000;
    assert_eq!(code(scene.tick()), Code::TokenExpired);
}

#[test]
fn a_session_that_keeps_sending_bad_tokens_is_closed() {
    let mut scene = Scene::live();
    let mut say = || scene.tell(1, Body::Token(v1::Token { token: "x".into() }));
    assert!((1..BAD_TOKENS).all(|_| error(&say().unwrap()).1 == Code::TokenInvalid));
    assert_eq!(code(say()), Code::TokenInvalid);
}

#[test]
fn numbers_that_no_device_reaches_close_before_the_core_counts_with_them() {
    for n in [tern_core::limits::MESSAGE_NUMBERS, u64::MAX] {
        assert_eq!(code(Scene::live().tell(2, send(n))), Code::BadFrame);
    }
    let out = Scene::live().tell(2, send(tern_core::limits::MESSAGE_NUMBERS - 1)).unwrap();
    assert_eq!(out.ups.len(), 1);
}

#[test]
fn pulls_with_a_number_in_use_close_so_that_no_more_are_under_way_than_are_counted() {
    let mut scene = Scene::live();
    for req in 2..=4 {
        scene.tell(req, Body::Pull(pull())).unwrap();
    }
    assert!(scene.may_read(Lane::Bulk));
    assert_eq!(code(scene.tell(3, Body::Pull(pull()))), Code::BadFrame);
    assert_eq!(code(scene.tell(3, Body::PullRows(v1::PullRows::default()))), Code::BadFrame);
    // An answered one may be used again.
    let page = Page {
        conversation: ConvId([1; 16]),
        origin: Origin { region: 1, era: 2 },
        entries: vec![],
        gaps: vec![],
        last: true,
    };
    scene.down(&mut DownBody::Page { req: 3, page });
    scene.tell(3, Body::Pull(pull())).unwrap();
    scene.tell(5, Body::Pull(pull())).unwrap();
    assert!(!scene.may_read(Lane::Bulk));
}

#[test]
fn a_body_does_not_keep_what_was_read_with_it() {
    let mut scene = Scene::live();
    let mut read = v1::Frame::new(2, send(1)).encode_to_vec();
    let length = read.len();
    read.resize(64 * 1024, 0);
    let read = Bytes::from(read);
    let out = scene
        .with(|s, cx| {
            let mut out = Outcome::default();
            s.frame(Some(Lane::Message), read.slice(..length), cx, &mut out).map(|()| out)
        })
        .unwrap();
    let [Up::Send { send, .. }] = &out.ups[..] else { panic!("{out:?}") };
    assert_eq!(send.body, "hi");
    assert!(read.try_into_mut().is_ok(), "nobody else holds the 64 KiB");
}

#[test]
fn frames_without_an_answer_are_limited_and_answered_ones_are_not() {
    let mut scene = Scene::live();
    let burst = scene.config.limits.notes_burst;
    let note = |scene: &mut Scene, i: u32| match i % 4 {
        0 => scene.tell(0, Body::PushAck(v1::PushAck { rev: 1 })),
        1 => scene.tell(0, Body::Network(v1::Network::default())),
        2 => scene.tell(0, Body::Unstable(v1::Unstable::default())),
        _ => scene.raw(Some(Lane::Control), &[0xa2, 0x06, 0]),
    };
    assert!((0..burst).all(|i| note(&mut scene, i).is_ok()));
    for req in 1..=100 {
        scene.tell(req, Body::Ping(v1::Ping::default())).unwrap();
    }
    let refusal = note(&mut scene, 0).unwrap_err();
    assert_eq!((refusal.code, refusal.retry_after_ms), (Code::RateLimited, RETRY_MS));
    scene.now = Duration::from_millis(5);
    assert!(note(&mut scene, 0).is_ok());
}

#[test]
fn a_user_has_so_many_connections_and_is_told_to_come_again() {
    let mut scene = Scene::new();
    let scene = &mut scene;
    let shared = Paces::new(20, 60);
    let most = EdgeConfig::default().limits.connections_per_user;
    let enter = |session: &mut Session, scene: &mut Scene, user: &str| {
        std::mem::swap(session, &mut scene.session);
        let bytes = v1::Frame::new(1, Body::Hello(hello(user))).encode_to_vec().into();
        let result = scene.with(|s, cx| {
            let cx = Context { paces: &shared, ..*cx };
            s.frame(Some(Lane::Control), bytes, &cx, &mut Outcome::default())
        });
        std::mem::swap(session, &mut scene.session);
        result
    };
    let fresh = |scene: &Scene| Session::new(Duration::ZERO, scene.config.limits.hello_timeout);
    let mut held: Vec<Session> = (0..most).map(|_| fresh(scene)).collect();
    held.iter_mut().for_each(|session| enter(session, scene, "alice").unwrap());
    let mut more = fresh(scene);
    let refusal = enter(&mut more, scene, "alice").unwrap_err();
    assert_eq!((refusal.code, refusal.code.retry()), (Code::Overloaded, Retry::Here));
    assert!((RETRY_MS..2 * RETRY_MS).contains(&refusal.retry_after_ms));
    assert_eq!(more.phase(), Phase::AwaitHello);
    enter(&mut fresh(scene), scene, "bob").unwrap();
    shared.leave(held[0].take_pace().unwrap(), Duration::ZERO);
    enter(&mut more, scene, "alice").unwrap();
}

#[test]
fn under_pressure_new_clients_and_pulls_come_again_later_and_a_core_that_is_behind_gets_no_sends() {
    for (pressed, crowded) in [(true, false), (false, true)] {
        let mut scene = Scene::new();
        (scene.pressed, scene.crowded) = (pressed, crowded);
        let refusal = scene.tell(1, Body::Hello(hello("alice"))).unwrap_err();
        assert_eq!(refusal.code, Code::Overloaded);
        assert!(refusal.retry_after_ms >= RETRY_MS);
        let mut scene = Scene::live();
        (scene.pressed, scene.crowded) = (pressed, crowded);
        let (req, refused, retry, after_ms) = error(&scene.tell(2, Body::Pull(pull())).unwrap());
        assert_eq!((req, refused, retry), (2, Code::Overloaded, Retry::Here));
        assert!(after_ms >= RETRY_MS);
        let out = scene.tell(3, send(1)).unwrap();
        if crowded {
            assert_eq!(error(&out).1, Code::Overloaded);
        } else {
            assert_eq!(out.ups.len(), 1, "a message takes memory in the core, not here");
        }
        assert_eq!(scene.tell(4, Body::Ping(v1::Ping::default())).unwrap().ups.len(), 1);
    }
}

/// Sends of one conversation that are all answered so late, for so long, and those of other connections: one is no queue.
fn stand(scene: &mut Scene, late: Duration, time: Duration) {
    let end = scene.now + time;
    while scene.now < end {
        let mut sent = v1::Send { n: 1, body: "hi".into(), conversation_id: vec![1; 16].into(), ..v1::Send::default() };
        // One that is admitted at that moment.
        while scene.load.refuses(scene.wall_ms, ConvId::from_slice(&sent.conversation_id).unwrap()).is_some() {
            sent.conversation_id = sent.conversation_id.iter().map(|b| b + 1).collect::<Vec<_>>().into();
        }
        assert_eq!(scene.tell(9, Body::Send(sent)).unwrap().ups.len(), 1);
        scene.now += late;
        acked(scene, 9);
        (0..3).for_each(|_| scene.load.answered(scene.now, late));
    }
}

fn acked(scene: &mut Scene, req: u32) {
    let place = Place { hlc: 1, origin: Origin { region: 1, era: 2 }, seq: 1 };
    let ack =
        Ack { place, first: None, receipt: [0; 16], also: vec![], receipt_refused: false, cut: Default::default() };
    scene.down(&mut DownBody::Ack { req, ack });
}

#[test]
fn acks_that_are_late_cost_signals_first_and_then_some_conversations_their_sends_until_a_time_they_are_told() {
    let mut scene = Scene::live();
    scene.paces = Paces::new(1_000_000, 1_000_000);
    let signal = Body::Signal(v1::Signal { conversation: vec![1; 16].into(), ..v1::Signal::default() });
    let passed = |scene: &mut Scene| scene.tell(0, signal.clone()).unwrap().ups.len();
    stand(&mut scene, Duration::from_millis(5), Duration::from_millis(500));
    assert_eq!(passed(&mut scene), 1);
    stand(&mut scene, Duration::from_millis(25), Duration::from_millis(500));
    assert_eq!((passed(&mut scene), scene.metrics.signals_dropped.get()), (0, 1));
    let to = |i: u8| Body::Send(v1::Send { n: 1, conversation_id: vec![i; 16].into(), ..v1::Send::default() });
    assert!((0..40).all(|i| scene.tell(2, to(i)).unwrap().ups.len() == 1), "nobody is refused yet");
    acked(&mut scene, 2);
    stand(&mut scene, Duration::from_millis(90), Duration::from_millis(1_500));
    let out: Vec<Outcome> = (0..40).map(|i| scene.tell(2, to(i)).unwrap()).collect();
    let refused: Vec<(u32, Code, Retry, u32)> = out.iter().filter(|o| o.ups.is_empty()).map(error).collect();
    assert!((5..40).contains(&refused.len()), "{refused:?}");
    assert!(refused.iter().all(|(req, code, retry, ms)| (*req, *code, *retry) == (2, Code::Overloaded, Retry::Here)
        && (1..=4_000).contains(ms)));
    let (i, ms) = (0u8..).zip(&out).find(|(_, o)| o.ups.is_empty()).map(|(i, o)| (i, error(o).3)).unwrap();
    scene.wall_ms += u64::from(ms) / 2;
    assert!(ms < 202 || scene.tell(2, to(i)).unwrap().ups.is_empty(), "still refused");
    scene.wall_ms += u64::from(ms) - u64::from(ms) / 2;
    assert_eq!(scene.tell(2, to(i)).unwrap().ups.len(), 1, "admitted when it comes back");
}

#[test]
fn a_hello_that_never_comes_and_a_core_that_never_answers_end_the_connection() {
    let mut scene = Scene::new();
    scene.now = Duration::from_millis(4_999);
    assert!(scene.tick().is_ok());
    scene.now = Duration::from_secs(5);
    assert_eq!(code(scene.tick()), Code::HelloTimeout);
    let mut scene = Scene::new();
    scene.tell(1, Body::Hello(hello("alice"))).unwrap();
    scene.now = Duration::from_secs(5);
    assert_eq!(code(scene.tick()), Code::CoreUnreachable);
}

#[test]
fn a_pong_tells_the_address_once_after_it_changed() {
    let mut scene = Scene::live();
    let seen = |scene: &mut Scene| match scene.completed(Body::Pong(v1::Pong::default())) {
        Body::Pong(pong) => pong.seen_address,
        other => panic!("a Pong became {other:?}"),
    };
    assert_eq!(seen(&mut scene), "");
    scene.peer = "198.51.100.7:6".parse().unwrap();
    assert_eq!(seen(&mut scene), "198.51.100.7:6");
    assert_eq!(seen(&mut scene), "");
}

mod any_bytes {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_at_any_moment_are_handled(
            frames in proptest::collection::vec((0usize..3, proptest::collection::vec(any::<u8>(), 0..60)), 0..20),
            live: bool,
        ) {
            let mut scene = if live { Scene::live() } else { Scene::new() };
            for (lane, bytes) in frames {
                if scene.raw(Some(Lane::ALL[lane]), &bytes).is_err() {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_watch_passes_and_one_of_too_many_or_of_no_user_ends_the_connection() {
    let watch = |users: Vec<String>| Body::Watch(v1::Watch { users });
    let many = |count: usize| (0..count).map(|i| format!("u{i}")).collect();
    let mut scene = Scene::live();
    for users in [many(WATCHED), Vec::new()] {
        assert_eq!(scene.tell(0, watch(users)).unwrap().ups.len(), 1);
    }
    for users in [many(WATCHED + 1), vec![String::new()], vec!["u".repeat(65)]] {
        assert!(scene.tell(0, watch(users.clone())).is_err(), "{users:?}");
        assert_eq!(scene.tell(7, watch(users)).unwrap().ups.len(), 0, "or is refused where an answer is wanted");
    }
}

#[test]
fn a_second_answer_to_a_ping_settles_no_other_request() {
    let mut scene = Scene::live();
    scene.tell(3, Body::Ping(v1::Ping { echo: 1, again_ms: 1_000, ..v1::Ping::default() })).unwrap();
    scene.tell(4, Body::Ping(v1::Ping::default())).unwrap();
    for again in [false, true] {
        scene.completed(Body::Pong(v1::Pong { echo: 1, again, ..v1::Pong::default() }));
    }
    assert_eq!(scene.session.open, 1, "the other Ping waits");
}

/// How long clients are told to spread their return, each time a session says so by itself.
fn told_spreads(scene: &mut Scene, seconds: u32, connections: impl Fn(u32) -> usize) -> Vec<(u32, u32)> {
    let mut told = Vec::new();
    for second in 0..seconds {
        scene.now = Duration::from_secs(second.into());
        scene.connections = connections(second);
        for (lane, frame) in scene.tick().unwrap().answers {
            let Some(Body::Spread(spread)) = frame.body else { panic!("{frame:?}") };
            assert_eq!((lane, frame.req), (Lane::Control, 0));
            told.push((second, spread.spread_ms));
        }
        let due = scene.session.next_deadline(scene.now, scene.wall_ms);
        assert!(due > scene.now, "a session spins");
    }
    told
}

#[test]
fn whoever_comes_first_is_told_how_many_come_after_him_as_long_as_that_wakes_nobody() {
    let mut scene = Scene::live();
    let told = told_spreads(&mut scene, 50, |second| 300 * second as usize);
    let per_second = scene.config.limits.return_per_second as usize;
    assert!((3..10).contains(&told.len()), "{told:?}: with each doubling");
    assert!(told.windows(2).all(|two| two[1].1 >= two[0].1 * 2), "{told:?}");
    assert!(told.iter().all(|(second, ms)| *ms as usize == 300_000 * *second as usize / per_second), "{told:?}");
    // What a Pong says counts, too.
    scene.connections = 40_000;
    let pong = Body::Pong(v1::Pong::default());
    let Body::Pong(pong) = scene.completed(pong) else { panic!("no Pong") };
    assert_eq!(pong.spread_ms as usize, 40_000_000 / per_second);
    scene.now = Duration::from_secs(58);
    assert!(scene.tick().unwrap().answers.is_empty(), "he knows");
    let mut late = Scene::live();
    let told = told_spreads(&mut late, 3_000, |second| if second < 61 { 1 } else { 50_000 });
    assert_eq!(told, [], "a radio may sleep by now");
}

#[test]
fn an_edge_of_few_says_nothing_by_itself() {
    let mut scene = Scene::live();
    assert_eq!(told_spreads(&mut scene, 80, |second| if second < 10 { 1 } else { 80 }), []);
}
