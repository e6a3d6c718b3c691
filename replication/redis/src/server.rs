//! One server, and the one connection to it, over which all requests are pipelined.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, ProtocolVersion, RedisConnectionInfo, RedisError,
    ServerErrorKind,
};
use tern_net::env::{Env, Stream};
use tern_net::secured::Insecure;
use tern_replication::routes::RoutesError;
use tokio::sync::{Mutex, oneshot};

use crate::info::Info;
use crate::limits::{ADDRESSES, RECONNECT, WRITE_BYTES};
use crate::metrics::RedisMetrics;
use crate::options::Options;

/// What is run by servers. Its name has a version: another version's is left alone, so that nodes of both can run.
const FUNCTIONS: &str = include_str!("functions.lua");

/// What all servers share.
#[derive(Debug)]
pub(crate) struct Context {
    pub env: Env,
    pub options: Options,
    pub metrics: RedisMetrics,
}

/// Why a request was not carried out.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It stays so.
    Routes(RoutesError),
    /// Another server has the slot.
    Moved(String),
    /// This one is giving the slot to another, which has this key.
    Ask(String),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Server {
    /// `host:port`.
    pub at: String,
    host: String,
    port: u16,
    context: Arc<Context>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    live: Option<Live>,
    /// Connections made or tried.
    count: u64,
    /// No attempt before that; the pause after the next failure; the last one.
    not_before: Duration,
    pause: Duration,
    failed: Option<RoutesError>,
}

/// A connection.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    number: u64,
    connection: MultiplexedConnection,
    pub info: Arc<Info>,
    /// It has the functions, and can hold a part of the table.
    is_ready: bool,
    /// Its task ends with it.
    _ends: Arc<oneshot::Sender<()>>,
}

impl Server {
    pub(crate) fn new(context: &Arc<Context>, host: &str, port: u16) -> Arc<Self> {
        let state = Mutex::new(State { pause: RECONNECT.0, ..State::default() });
        let at = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Arc::new(Self { at, host: host.to_owned(), port, context: context.clone(), state })
    }

    /// The connection, which is made where there is none, unless that was tried a moment ago. `ready`: for one that is
    /// to hold a part of the table.
    pub(crate) async fn live(&self, ready: bool) -> Result<Live, RoutesError> {
        let mut state = self.state.lock().await;
        if let Some(live) = state.live.as_ref().filter(|live| live.is_ready || !ready) {
            return Ok(live.clone());
        }
        let now = self.context.env.clock.now();
        if now < state.not_before
            && let Some(failed) = &state.failed
        {
            return Err(failed.clone());
        }
        state.count += 1;
        let within = self.context.options.request_timeout;
        let made = tokio::time::timeout(within, async {
            let live = match state.live.clone() {
                Some(live) => live,
                None => self.connect(state.count).await?,
            };
            if ready { self.prepare(live).await } else { Ok(live) }
        });
        let made = made.await.unwrap_or_else(|_| Err(self.silent(state.live.is_none())));
        match made {
            Ok(live) => {
                state.live = Some(live.clone());
                (state.pause, state.failed) = (RECONNECT.0, None);
                Ok(live)
            }
            Err(error) => {
                state.live = None;
                let pause_ms = u64::try_from(state.pause.as_millis()).unwrap_or(1_000);
                let chance = Duration::from_millis(self.context.env.rng.u64() % (pause_ms / 4).max(1));
                state.not_before = self.context.env.clock.now() + state.pause + chance;
                state.pause = (state.pause * 2).min(RECONNECT.1);
                state.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    fn silent(&self, is_new: bool) -> RoutesError {
        let options = &self.context.options;
        let ms = options.request_timeout.as_millis();
        // Redis takes the first message of TLS for a command that goes on, and waits.
        let hint = match is_new && options.tls.is_some() {
            true => "; does it speak TLS at that port, as routes.tls.ca says?",
            false => "",
        };
        RoutesError::Unreachable(format!("the server at {} has not answered within {ms} ms{hint}", self.at))
    }

    /// A stream to it, secured if it is to be.
    async fn stream(&self) -> Result<Box<dyn Stream>, RoutesError> {
        let unreachable = |what: &dyn std::fmt::Display| {
            RoutesError::Unreachable(format!(
                "no connection to the server at {}: {what}; is it up, and is routes.nodes right?",
                self.at
            ))
        };
        let net = &self.context.env.net;
        let addresses = net.resolve(&self.host).await.map_err(|error| unreachable(&error))?;
        let mut stream = Err(unreachable(&"the name has no address"));
        for address in addresses.into_iter().take(ADDRESSES) {
            match net.connect((address, self.port).into()).await {
                Ok(connected) => {
                    stream = Ok(connected);
                    break;
                }
                Err(error) => stream = Err(unreachable(&error)),
            }
        }
        match &self.context.options.tls {
            None => stream,
            Some(tls) => tls.open(&self.host, stream?).await.map_err(|error| self.insecure(&error)),
        }
    }

    fn insecure(&self, error: &Insecure) -> RoutesError {
        let todo = match error {
            Insecure::Plain => {
                "unset routes.tls.ca if that is meant, or name the server's port for TLS in routes.nodes"
            }
            Insecure::Old => "set its tls-protocols to TLSv1.3, with or without TLSv1.2",
            Insecure::Untrusted(_) => "set routes.tls.ca to the authority that has signed it",
            Insecure::Name(_) | Insecure::OtherName { .. } => {
                "name the server in routes.nodes as its certificate does, or set routes.tls.name"
            }
            Insecure::Asks => {
                "set routes.tls.cert and routes.tls.key, or its tls-auth-clients to \"no\" or \"optional\""
            }
            Insecure::Refuses(_) => "have routes.tls.cert signed by an authority in its tls-ca-cert-file",
            Insecure::Time(_) | Insecure::Unusable(_) => "see its tls-cert-file",
            Insecure::Broken(_) => "does it speak TLS at that port (its tls-port), as routes.tls.ca says?",
        };
        let what = format!("no TLS session with the server at {}: {error}; {todo}", self.at);
        if error.is_lasting() { RoutesError::Unfit(what) } else { RoutesError::Unreachable(what) }
    }

    async fn connect(&self, number: u64) -> Result<Live, RoutesError> {
        let env = &self.context.env;
        let stream = self.stream().await?;
        let options = &self.context.options;
        let mut login = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_skip_set_lib_name();
        if let Some(user) = &options.user {
            login = login.set_username(user);
        }
        if let Some(password) = &options.password {
            login = login.set_password(password);
        }
        // Each request has its own time-out, by the environment's clock.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_write_backpressure_boundary(WRITE_BYTES);
        let made = MultiplexedConnection::new_with_config(&login, stream, config).await;
        let (mut connection, driver) = made.map_err(|error| self.greeting(&error))?;
        let (ends, ended) = oneshot::channel::<()>();
        env.tasks.spawn(async move {
            tokio::select! {
                biased;
                _nobody_has_it_any_more = ended => {}
                () = driver => {}
            }
        });
        self.context.metrics.connects.inc();
        let text: Result<String, _> = redis::cmd("INFO").query_async(&mut connection).await;
        let info = Info::parse(&text.map_err(|error| self.error(&error))?);
        info.check_kind(&self.at)?;
        Ok(Live { number, connection, info: Arc::new(info), is_ready: false, _ends: Arc::new(ends) })
    }

    /// What is wrong with a first exchange.
    fn greeting(&self, error: &RedisError) -> RoutesError {
        let said = error.to_string();
        let at = &self.at;
        if let Some(error) = insecure(error) {
            return self.insecure(&error);
        }
        if error.kind() == ErrorKind::AuthenticationFailed || said.contains("NOAUTH") || said.contains("WRONGPASS") {
            return RoutesError::Unfit(format!(
                "the server at {at} refuses the login ({said}): set routes.user, and routes.password or \
                 routes.password_file"
            ));
        }
        if said.contains("unknown command") || error.kind() == ErrorKind::Parse {
            return RoutesError::Unfit(format!(
                "the server at {at} does not speak RESP3 ({said}): the table of routes needs Redis 7 or later"
            ));
        }
        if is_broken(error) {
            // So does a server that hears no TLS where it expects it, and one that waits for a certificate.
            let hint = match self.context.options.tls {
                None => "if it speaks TLS at that port, set routes.tls.ca",
                Some(_) => "if it wants a certificate from this node, set routes.tls.cert and routes.tls.key",
            };
            return RoutesError::Unreachable(format!("the server at {at} ends new connections ({said}); {hint}"));
        }
        self.error(error)
    }

    /// Gives it the functions, once it is known that it can hold a part of the table.
    async fn prepare(&self, mut live: Live) -> Result<Live, RoutesError> {
        live.info.check_holder(&self.at)?;
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg(FUNCTIONS);
        match load.query_async::<String>(&mut live.connection).await {
            Ok(_) => {}
            Err(error) if error.to_string().contains("already exists") => {}
            Err(error) if error.to_string().contains("unknown command") => {
                return Err(RoutesError::Unfit(format!(
                    "the server at {} has no functions ({error}): use Redis 7 or later, where FUNCTION and FCALL are not \
                     renamed away",
                    self.at
                )));
            }
            Err(error) => return Err(self.error(&error)),
        }
        live.is_ready = true;
        Ok(live)
    }

    /// One request, to a server that holds a part of the table.
    pub(crate) async fn ask<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, Failure> {
        self.request(cmd, true, false).await
    }

    /// Likewise, of a key that is on its way to this server.
    pub(crate) async fn asking<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, Failure> {
        self.request(cmd, true, true).await
    }

    /// One request, to any server.
    pub(crate) async fn ask_any<T: FromRedisValue>(&self, cmd: &Cmd) -> Result<T, Failure> {
        self.request(cmd, false, false).await
    }

    async fn request<T: FromRedisValue>(&self, cmd: &Cmd, ready: bool, asking: bool) -> Result<T, Failure> {
        let live = self.live(ready).await.map_err(Failure::Routes)?;
        let mut connection = live.connection.clone();
        let (clock, metrics) = (&self.context.env.clock, &self.context.metrics);
        let began = clock.now();
        let answer = async {
            if asking {
                let mut both = redis::pipe();
                both.cmd("ASKING").ignore().add_command(cmd.clone());
                return both.query_async::<(T,)>(&mut connection).await.map(|(answer,)| answer);
            }
            cmd.query_async::<T>(&mut connection).await
        };
        let answer = tokio::time::timeout(self.context.options.request_timeout, answer).await;
        match answer {
            Ok(Ok(answer)) => {
                metrics.request_seconds.observe(clock.now().saturating_sub(began).as_secs_f64());
                Ok(answer)
            }
            Ok(Err(error)) => {
                let redirect = error.redirect_node().map(|(to, _)| to.to_owned());
                let failure = match (error.kind(), redirect) {
                    (ErrorKind::Server(ServerErrorKind::Moved), Some(to)) => Failure::Moved(to),
                    (ErrorKind::Server(ServerErrorKind::Ask), Some(to)) => Failure::Ask(to),
                    _ => {
                        metrics.failures.inc();
                        if is_broken(&error) {
                            self.drop_connection(&live).await;
                        }
                        Failure::Routes(self.error(&error))
                    }
                };
                Err(failure)
            }
            Err(_) => {
                metrics.failures.inc();
                self.drop_connection(&live).await;
                Err(Failure::Routes(self.silent(false)))
            }
        }
    }

    async fn drop_connection(&self, live: &Live) {
        let mut state = self.state.lock().await;
        if state.live.as_ref().is_some_and(|current| current.number == live.number) {
            state.live = None;
        }
    }

    fn error(&self, error: &RedisError) -> RoutesError {
        let at = &self.at;
        match (error.kind(), error.code()) {
            (ErrorKind::Server(ServerErrorKind::NoPerm), _) => RoutesError::Unfit(format!(
                "the server at {at} does not allow this user what the table needs ({error}): see \"Routes in Redis\" in \
                 docs/OPERATIONS.md for its permissions"
            )),
            (_, Some("OOM")) => RoutesError::Unfit(format!(
                "the server at {at} has reached its maxmemory: raise it, or give the table a server of its own"
            )),
            (_, Some("MISCONF")) => RoutesError::Unfit(format!(
                "the server at {at} can't save its snapshot and refuses writes ({error}): the table needs none, so set \
                 `save \"\"`, or free its disk"
            )),
            (
                ErrorKind::Server(
                    ServerErrorKind::BusyLoading
                    | ServerErrorKind::ClusterDown
                    | ServerErrorKind::MasterDown
                    | ServerErrorKind::ReadOnly
                    | ServerErrorKind::TryAgain,
                ),
                _,
            ) => RoutesError::Unreachable(format!("the server at {at} says {error}")),
            _ if is_broken(error) => RoutesError::Unreachable(format!("the server at {at}: {error}")),
            _ => RoutesError::Refused(format!("the server at {at} says {error}")),
        }
    }
}

/// What TLS has to say of it, if anything. The driver wraps what the stream says.
fn insecure(error: &RedisError) -> Option<Insecure> {
    let wrapped = error.source()?.downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
    Insecure::of(wrapped.downcast_ref::<io::Error>()?)
}

/// Whether another connection, with the checks and functions that it begins with, may help.
fn is_broken(error: &RedisError) -> bool {
    let lacks_functions = || error.to_string().contains("Function not found");
    let is_replica = error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly);
    error.is_io_error() || error.is_connection_dropped() || is_replica || lacks_functions()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Functions under one name are the same for every version of the program that loads them: whoever changes the text
    /// counts the version up, in all its names, and the number here.
    #[test]
    fn the_functions_of_a_version_never_change() {
        let sum = ring::digest::digest(&ring::digest::SHA256, FUNCTIONS.as_bytes());
        let sum: String = sum.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((1, sum.as_str()), (1, "e286d74992971621"));
        let names = FUNCTIONS.matches("register_function('tern_routes_1_").count();
        assert!(names == 4 && FUNCTIONS.starts_with("#!lua name=tern_routes_1\n"));
    }
}
