//! The session with all that it looks at, for fuzz cases. No part of the crate's API.

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tern_core::codes::Refusal;
use tern_core::edge_api::{DownBody, Up};
use tern_core::wire::{Lane, v1};

use crate::config::EdgeConfig;
use crate::load::Load;
use crate::metrics::EdgeMetrics;
use crate::pace::Paces;
use crate::session::{Context, Outcome, Phase, Session};
use crate::tokens::TokenKeys;
use crate::tune::Tuning;

/// A frame in fewer bytes, as it is written to clients that understand it.
pub fn pack(frame: &v1::Frame) -> Option<v1::Frame> {
    crate::packing::pack(frame)
}

/// What the surroundings are like.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// See the fields of the same names of the session's context.
    pub core_reachable: bool,
    /// Likewise.
    pub draining: bool,
    /// Likewise.
    pub pressed: bool,
    /// Likewise.
    pub crowded: bool,
}

impl Default for Weather {
    fn default() -> Self {
        Self { core_reachable: true, draining: false, pressed: false, crowded: false }
    }
}

/// One connection's session.
#[derive(Debug)]
pub struct SessionUnderTest {
    session: Session,
    config: EdgeConfig,
    tuning: ArcSwap<Tuning>,
    keys: RwLock<Arc<TokenKeys>>,
    paces: Paces,
    load: Load,
    metrics: EdgeMetrics,
    peer: SocketAddr,
    now: Duration,
    wall_ms: u64,
    /// What the surroundings are like.
    pub weather: Weather,
}

/// What came of an input: for the core, and for the client.
pub type Came = (Vec<Up>, Vec<v1::Frame>);

impl SessionUnderTest {
    /// One that awaits its Hello.
    pub fn new(keys: TokenKeys, wall_ms: u64) -> Self {
        let config = EdgeConfig::default();
        Self {
            session: Session::new(Duration::ZERO, config.limits.hello_timeout),
            paces: Paces::new(config.limits.sends_per_second, config.limits.sends_burst),
            load: Load::default(),
            tuning: ArcSwap::from_pointee(Tuning::of(&config)),
            config,
            keys: RwLock::new(Arc::new(keys)),
            metrics: EdgeMetrics::default(),
            peer: SocketAddr::from(([192, 0, 2, 1], 5)),
            now: Duration::ZERO,
            wall_ms,
            weather: Weather::default(),
        }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Session, &Context<'_>, &mut Outcome) -> T) -> (T, Came) {
        let cx = Context {
            conn: 7,
            peer: self.peer,
            transport: "quic",
            now: self.now,
            wall_ms: self.wall_ms,
            connections: 0,
            core_reachable: self.weather.core_reachable,
            core_whole: self.weather.core_reachable,
            core_generation: 0,
            draining: self.weather.draining,
            pressed: self.weather.pressed,
            crowded: self.weather.crowded,
            keys: &self.keys,
            config: &self.config,
            tuning: &self.tuning,
            paces: &self.paces,
            load: &self.load,
            metrics: &self.metrics,
        };
        let mut out = Outcome::default();
        let result = act(&mut self.session, &cx, &mut out);
        (result, (out.ups, out.answers.into_iter().map(|(_, frame)| frame).collect()))
    }

    /// A frame, if one may be read there now: as the driver would hand it in.
    ///
    /// # Errors
    /// What closes the connection.
    pub fn frame(&mut self, lane: Option<Lane>, bytes: Bytes) -> Option<Result<Came, Refusal>> {
        if !self.session.may_read(lane, &self.config, false) {
            return None;
        }
        let (result, came) = self.with(|session, cx, out| session.frame(lane, bytes, cx, out));
        Some(result.map(|()| came))
    }

    /// Something from the core is written.
    pub fn down(&mut self, mut body: DownBody) -> DownBody {
        self.with(|session, cx, _| session.down(&mut body, cx));
        body
    }

    /// Time passes.
    ///
    /// # Errors
    /// What closes the connection.
    pub fn pass(&mut self, ms: u64) -> Result<Came, Refusal> {
        self.now += Duration::from_millis(ms);
        self.wall_ms += ms;
        let (result, came) = self.with(Session::tick);
        result.map(|()| came)
    }

    /// The client is somewhere else.
    pub fn roam(&mut self, port: u16) {
        self.peer.set_port(port);
    }

    /// Whether the Hello was answered.
    pub fn is_live(&self) -> bool {
        self.session.phase() == Phase::Live
    }

    /// What must hold after every step: what waits is bounded, and there is a next deadline ahead.
    ///
    /// # Panics
    /// Where it does not hold.
    pub fn check(&self) {
        let (open, pulls) = self.session.under_way();
        assert!(open <= self.config.limits.in_flight, "{open} requests wait");
        assert!(pulls <= self.config.limits.pulls_in_flight, "{pulls} pulls wait");
        let due = self.session.next_deadline(self.now, self.wall_ms);
        assert!(due <= self.now + Duration::from_secs(3600), "the next look is at {due:?}");
    }
}
