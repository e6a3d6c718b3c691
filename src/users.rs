//! `tern user`: what an operator decides about a user: tokens revoked, a device removed.
//!
//! Both are cells of the user's own log, written by the region on this machine, so they are durable when the
//! command ends, reach every region as any message does, and end connections there the moment they arrive. The
//! command asks the region over its admin listener; [`Desk`] hands that to the core as one more connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use http_body_util::Full;
use hyper::header::ORIGIN;
use hyper::{HeaderMap, Method, Response, StatusCode, Uri};
use prost::Message;
use tern_core::edge_api::{ConnId, CorePort, Down, DownBody, EdgePort, SendRequest, Up};
use tern_core::fold::{REVOKE_KEY, kick_key};
use tern_core::ids::{ConvId, InstallId, UserId};
use tern_core::kinds::CELL;
use tern_core::wire::v1::frame::Body;
use tern_core::wire::{VERSION, v1};
use tern_net::env::Env;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::admin;
use crate::cli::Global;
use crate::exit::Failure;
use crate::store::{encode, parameter};

/// A commit on a slow disk takes no longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// What the core may say to one question: a Welcome, an ack, and a few rows and notes between them.
const ANSWERS: usize = 64;

/// Options of `user`.
#[derive(Clone, Debug, Args)]
pub struct UserArgs {
    /// Which.
    #[command(subcommand)]
    pub action: Action,
}

/// What to decide.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Revoke all tokens of a user that were issued until now: his connections end, in every region
    Revoke {
        /// Whose
        #[arg(long, value_parser = crate::cli::user)]
        user: UserId,
    },
    /// Remove a device of a user: it may not connect any more
    Kick {
        /// Whose
        #[arg(long, value_parser = crate::cli::user)]
        user: UserId,
        /// Which install, as `tern chat` shows it with /devices
        #[arg(long, value_name = "INSTALL")]
        install: String,
        /// What the device is told
        #[arg(long, default_value = "removed by an operator", value_name = "TEXT")]
        reason: String,
        /// Also one that this region does not know
        #[arg(long)]
        force: bool,
    },
}

/// Runs the command.
pub fn run(global: &Global, args: &UserArgs) -> Result<(), Failure> {
    let settings = crate::settings(global, &[])?;
    let query = match &args.action {
        Action::Revoke { user } => format!("revoke?user={}", encode(user.as_str())),
        Action::Kick { user, install, reason, force } => {
            let install = InstallId::new(install).map_err(|e| Failure::Start(anyhow!("--install: {e}")))?;
            format!(
                "kick?user={}&install={}&reason={}&force={force}",
                encode(user.as_str()),
                encode(install.as_str()),
                encode(reason)
            )
        }
    };
    let admin = settings.admin_listen();
    let asked = admin::post(admin, &format!("/users/{query}"));
    let said = asked.with_context(|| {
        format!("asked the region at {admin}; if its admin listener is elsewhere, give its configuration, or --set listen.admin=ADDRESS")
    })?;
    let said = said.trim();
    if global.json {
        println!("{}", serde_json::json!({ "done": said }));
    } else {
        println!("{said}");
    }
    Ok(())
}

/// Asks the core in an operator's name.
#[derive(Debug, Default)]
pub struct Desk {
    core: OnceLock<(Arc<dyn CorePort>, Env)>,
    conns: AtomicU64,
    open: Mutex<BTreeMap<ConnId, mpsc::Sender<DownBody>>>,
}

impl EdgePort for Desk {
    fn deliver(&self, downs: Vec<Down>) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for down in downs {
            if let Some(asker) = open.get(&down.conn) {
                // Whoever does not listen any more has given up.
                let _gone_or_full = asker.try_send(down.body);
            }
        }
    }
}

impl Desk {
    /// The core that is asked; counts once.
    pub fn attach(&self, core: Arc<dyn CorePort>, env: Env) {
        if self.core.set((core, env)).is_err() {
            tracing::error!("a core was attached twice");
        }
    }

    /// Sets a cell of a user's own log, if it is of a device that is known or of none. Returns once that is durable.
    async fn set(&self, user: &UserId, cell: v1::Cell, device: Option<&InstallId>) -> Result<()> {
        let (core, env) = self.core.get().context("there is no core here, or not yet")?;
        let conn = self.conns.fetch_add(1, Ordering::Relaxed) + 1;
        let (tell, told) = mpsc::channel(ANSWERS);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(conn, tell);
        let set = timeout(ANSWER_WITHIN, exchange(&**core, env, conn, user, cell, device, told)).await;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&conn);
        core.submit(vec![Up::Close { conn }]);
        set.map_err(|_| anyhow!("the core did not answer in time; whether it was done is not known: ask again"))?
    }
}

async fn exchange(
    core: &dyn CorePort,
    env: &Env,
    conn: ConnId,
    user: &UserId,
    cell: v1::Cell,
    device: Option<&InstallId>,
    mut told: mpsc::Receiver<DownBody>,
) -> Result<()> {
    // A new install each time: what one wrote is never taken for a copy of what another did.
    let mut name = [0; 8];
    env.rng.fill(&mut name);
    let install = InstallId::new(&format!("operator-{:016x}", u64::from_be_bytes(name)))?;
    let hello = v1::Hello { versions: vec![VERSION], compare: true, ..v1::Hello::default() };
    core.submit(vec![Up::Open {
        conn,
        req: 1,
        user: user.clone(),
        install,
        hello: Box::new(hello),
        address: "admin".to_owned(),
        transport: tern_core::edge_api::OPERATOR,
        token_expires_ms: u64::MAX,
        token_issued_ms: u64::MAX,
    }]);
    let Some(Body::Welcome(welcome)) = answer_to(&mut told, 1).await? else { bail!("the core does not welcome") };
    let own_log = ConvId::own(&welcome.direct_salt, user);
    if let Some(device) = device {
        let known = devices(core, conn, own_log, &mut told).await?;
        if !known.contains(device.as_str()) {
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            bail!(
                "no device {device} of {user} is known in this region, so nothing was done. Known are: [{known}]. With \
                 --force it is kept out all the same"
            );
        }
    }
    let send = SendRequest {
        conversation: own_log,
        peer: Some(user.clone()),
        n: 1,
        floor: 1,
        seen_hlc: 0,
        kind: CELL,
        body: cell.encode_to_vec().into(),
        wall_ms: env.clock.wall_ms(),
        offer: None,
        membership: None,
        named: None,
    };
    core.submit(vec![Up::Send { conn, req: 2, send }]);
    match answer_to(&mut told, 2).await? {
        Some(Body::Error(error)) => bail!("refused: {}", error.message),
        _ => Ok(()),
    }
}

/// What the core answers to one request; an ack says no more than that.
async fn answer_to(told: &mut mpsc::Receiver<DownBody>, req: u32) -> Result<Option<Body>> {
    while let Some(body) = told.recv().await {
        match body {
            DownBody::Frame(frame) if frame.req == req => return Ok(frame.body),
            DownBody::Ack { req: of, .. } if of == req => return Ok(None),
            DownBody::Last(refusal) => bail!("refused: {refusal}"),
            DownBody::Frame(_) | DownBody::Ack { .. } | DownBody::Push(_) | DownBody::Page { .. } => {}
        }
    }
    bail!("the core went away; whether it was done is not known")
}

/// The devices of a user that have said their name in his own log, or are connected.
async fn devices(
    core: &dyn CorePort,
    conn: ConnId,
    own_log: ConvId,
    told: &mut mpsc::Receiver<DownBody>,
) -> Result<BTreeSet<String>> {
    let ask = |req, body| core.submit(vec![Up::Frame { conn, frame: v1::Frame::new(req, body) }]);
    let mut known = BTreeSet::new();
    ask(3, Body::PullCells(v1::PullCells { conversation: Bytes::copy_from_slice(&own_log.0) }));
    // An error says that there is no such log yet.
    if let Some(Body::Cells(cells)) = answer_to(told, 3).await? {
        known.extend(cells.cells.iter().filter_map(|cell| cell.key.strip_prefix("device/")).map(str::to_owned));
    }
    ask(4, Body::PullDevices(v1::PullDevices {}));
    if let Some(Body::Devices(connected)) = answer_to(told, 4).await? {
        known.extend(connected.devices.into_iter().map(|device| device.install));
    }
    // The operator's own connections are none of the user's devices.
    known.retain(|install| !install.starts_with("operator-"));
    Ok(known)
}

/// Answers `POST /users/revoke?user=NAME` and `POST /users/kick?user=NAME&install=ID&reason=TEXT&force=true`, to callers
/// on the machine itself and to no browser's page.
pub async fn answer(
    method: &Method,
    uri: &Uri,
    from: SocketAddr,
    headers: &HeaderMap,
    desk: &Desk,
) -> Response<Full<Bytes>> {
    let say = |status, what: &str| admin::text(status, format!("{what}\n"));
    if !from.ip().to_canonical().is_loopback() || headers.contains_key(ORIGIN) {
        return say(StatusCode::FORBIDDEN, "this is answered on the machine itself only, and to no browser");
    }
    if method != Method::POST {
        return say(StatusCode::METHOD_NOT_ALLOWED, "POST is what is answered here");
    }
    let Some((_, env)) = desk.core.get() else {
        return say(StatusCode::SERVICE_UNAVAILABLE, "there is no region here, or it is starting");
    };
    let query = uri.query().unwrap_or("");
    let user = match parameter(query, "user").as_deref().map(UserId::new) {
        Some(Ok(user)) => user,
        Some(Err(error)) => return say(StatusCode::BAD_REQUEST, &format!("user: {error}")),
        None => return say(StatusCode::BAD_REQUEST, "user=NAME is missing"),
    };
    let (cell, device, done) = match uri.path() {
        "/users/revoke" => {
            let cell = v1::RevokeCell { before_ms: env.clock.wall_ms() + 1 };
            let cell = v1::Cell { key: REVOKE_KEY.to_owned(), value: cell.encode_to_vec().into() };
            (cell, None, format!("tokens of {user} that were issued until now are revoked"))
        }
        "/users/kick" => {
            let install = match parameter(query, "install").as_deref().map(InstallId::new) {
                Some(Ok(install)) => install,
                Some(Err(error)) => return say(StatusCode::BAD_REQUEST, &format!("install: {error}")),
                None => return say(StatusCode::BAD_REQUEST, "install=ID is missing"),
            };
            let mut reason = parameter(query, "reason").unwrap_or_default();
            reason.truncate((0..=256).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0));
            if reason.is_empty() {
                "removed by an operator".clone_into(&mut reason);
            }
            let cell = v1::KickCell { reason };
            let done = format!("device {install} of {user} is removed");
            let cell = v1::Cell { key: kick_key(&install), value: cell.encode_to_vec().into() };
            let forced = parameter(query, "force").as_deref() == Some("true");
            (cell, Some(install).filter(|_| !forced), done)
        }
        _ => return say(StatusCode::NOT_FOUND, "here are /users/revoke and /users/kick"),
    };
    match desk.set(&user, cell, device.as_ref()).await {
        Ok(()) => {
            tracing::info!(%user, path = uri.path(), "done for an operator");
            say(StatusCode::OK, &done)
        }
        Err(error) => say(StatusCode::UNPROCESSABLE_ENTITY, &format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use tern_core::edge_api::Ack;
    use tern_core::ids::{Heads, Origin, Place};
    use tern_core::wire::node_v1;
    use tern_net::system::system_env;

    /// A core that welcomes everybody, acks what is sent, and remembers it.
    #[derive(Debug)]
    struct Core {
        desk: std::sync::Weak<Desk>,
        sent: Mutex<Vec<(UserId, SendRequest)>>,
        refuses: bool,
        user: Mutex<Option<UserId>>,
    }

    impl CorePort for Core {
        fn submit(&self, ups: Vec<Up>) {
            let desk = self.desk.upgrade().unwrap();
            for up in ups {
                let conn = up.conn();
                let body = match up {
                    Up::Open { user, transport, .. } => {
                        assert_eq!(transport, tern_core::edge_api::OPERATOR);
                        *self.user.lock().unwrap() = Some(user);
                        let welcome = v1::Welcome { direct_salt: Bytes::from_static(b"salt"), ..Default::default() };
                        DownBody::Frame(Box::new(v1::Frame::new(1, Body::Welcome(welcome))))
                    }
                    Up::Send { req, .. } if self.refuses => {
                        let error = v1::Error { message: "disk full".to_owned(), ..Default::default() };
                        DownBody::Frame(Box::new(v1::Frame::new(req, Body::Error(error))))
                    }
                    Up::Send { req, send, .. } => {
                        let user = self.user.lock().unwrap().clone().unwrap();
                        self.sent.lock().unwrap().push((user, send));
                        let place = Place { hlc: 1, origin: Origin { region: 1, era: 1 }, seq: 1 };
                        let (first, also, cut) = (None, Vec::new(), Heads::new());
                        let ack = Ack { place, first, receipt: [0; 16], cut, also, receipt_refused: false };
                        DownBody::Ack { req, ack }
                    }
                    Up::Frame { frame, .. } => {
                        let body = match frame.body {
                            Some(Body::PullCells(_)) => {
                                let cell = |key: &str| v1::FoldedCell { key: key.to_owned(), ..Default::default() };
                                let cells = vec![cell("device/pc"), cell("mute/0")];
                                Body::Cells(v1::Cells { cells, ..Default::default() })
                            }
                            Some(Body::PullDevices(_)) => {
                                let of =
                                    |install: &str| v1::Device { install: install.to_owned(), ..Default::default() };
                                Body::Devices(v1::Devices { devices: vec![of("nameless"), of("operator-1")] })
                            }
                            other => panic!("{other:?}"),
                        };
                        DownBody::Frame(Box::new(v1::Frame::new(frame.req, body)))
                    }
                    Up::Attach { .. } | Up::Resume { .. } | Up::Close { .. } => continue,
                };
                desk.deliver(vec![Down { conn, body }]);
            }
        }

        fn reachable(&self) -> bool {
            true
        }

        fn report(&self, _load: node_v1::EdgeLoad) {}
    }

    fn desk(refuses: bool) -> (Arc<Desk>, Arc<Core>) {
        let desk = Arc::new(Desk::default());
        let (sent, user) = (Mutex::default(), Mutex::default());
        let core = Arc::new(Core { desk: Arc::downgrade(&desk), sent, refuses, user });
        desk.attach(core.clone(), system_env().unwrap());
        (desk, core)
    }

    async fn post(desk: &Desk, path: &str) -> (u16, String) {
        let here = SocketAddr::from(([127, 0, 0, 1], 5));
        let answer = answer(&Method::POST, &path.parse().unwrap(), here, &HeaderMap::new(), desk).await;
        let status = answer.status().as_u16();
        (status, String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_decision_is_a_cell_of_the_users_own_log_and_answered_once_it_is_durable() {
        let (desk, core) = desk(false);
        assert_eq!(post(&desk, "/users/revoke?user=al%20ice").await.0, 200);
        let (status, said) = post(&desk, "/users/kick?user=bob&install=pc&reason=sold").await;
        assert_eq!((status, said.as_str()), (200, "device pc of bob is removed\n"));
        let sent = core.sent.lock().unwrap();
        let cells: Vec<_> = sent
            .iter()
            .map(|(user, send)| {
                assert_eq!((send.conversation, send.kind, send.n), (ConvId::own(b"salt", user), CELL, 1));
                (user.as_str(), v1::Cell::decode(send.body.clone()).unwrap().key)
            })
            .collect();
        assert_eq!(cells, [("al ice", "revoke".to_owned()), ("bob", "kick/pc".to_owned())]);
        assert!(desk.open.lock().unwrap().is_empty(), "nothing is left of the questions");
    }

    #[tokio::test]
    async fn a_device_that_is_not_known_is_removed_only_if_forced() {
        let (desk, core) = desk(false);
        for stranger in ["typo", "operator-1"] {
            let (status, said) = post(&desk, &format!("/users/kick?user=bob&install={stranger}")).await;
            assert!(status == 422 && said.contains(stranger) && said.contains("[nameless, pc]"), "{said}");
        }
        assert!(core.sent.lock().unwrap().is_empty(), "nothing was done");
        assert_eq!(post(&desk, "/users/kick?user=bob&install=nameless").await.0, 200);
        assert_eq!(post(&desk, "/users/kick?user=bob&install=typo&force=true").await.0, 200);
        assert_eq!(core.sent.lock().unwrap().len(), 2);
    }

    #[tokio::test]
    async fn what_is_wrong_is_said_and_nothing_is_done() {
        let (desk, core) = desk(true);
        for (path, status) in [
            ("/users/revoke", 400),
            ("/users/kick?user=bob", 400),
            ("/users/other?user=bob", 404),
            ("/users/revoke?user=bob", 422),
        ] {
            assert_eq!(post(&desk, path).await.0, status, "{path}");
        }
        assert!(post(&desk, "/users/revoke?user=bob").await.1.contains("disk full"));
        assert!(core.sent.lock().unwrap().is_empty());
        let there = SocketAddr::from(([192, 0, 2, 1], 5));
        let uri = "/users/revoke?user=bob".parse().unwrap();
        let refused = answer(&Method::POST, &uri, there, &HeaderMap::new(), &desk).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        let none = Desk::default();
        assert_eq!(post(&none, "/users/revoke?user=bob").await.0, 503);
    }
}
