//! `tern doctor`: looks at everything that a role needs, before its first start or beside it, and says what to
//! change.
//!
//! A check is a function from the configuration to [`Finding`]s; none changes anything. (The disk's speed is
//! measured in a file that never has a name.) What can't be found out is said to be unknown, not fine.
//!
//! `machine`: limits of the kernel, memory, the clock. `listening`: ports and who has them. `identity`:
//! certificates and keys. `storage`: the data directory and the store. `reach`: other nodes. `way`, which is asked for by
//! `--from`: where dispatch sends a client, and whether these edges can be reached.

mod database;
mod identity;
mod listening;
mod machine;
mod reach;
mod routes;
mod storage;
mod way;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::{Value, json};
use tern_net::env::Env;
use tern_net::http::HttpClient;
use tern_net::system::system_env;

pub use self::way::Whence;

use crate::cli::{DoctorArgs, Global};
use crate::config::Settings;
use crate::config::scope::Role;
use crate::exit::Failure;

/// How long a node of this configuration that may be running has to answer.
const RUNNING_WITHIN: Duration = Duration::from_secs(2);
/// Bytes of its answer.
const CONFIG_BYTES: usize = 1024 * 1024;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing to do.
    Ok,
    /// It works, and will not always.
    Warning,
    /// It does not work.
    Failed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Failed => "failed",
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which check.
    pub check: &'static str,
    /// How bad it is.
    pub state: State,
    /// What was found, with figures.
    pub what: String,
    /// The command or the key that helps; empty where nothing is to be done.
    pub todo: String,
}

impl Finding {
    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, state: State::Ok, what: what.into(), todo: String::new() }
    }

    fn warning(check: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { check, state: State::Warning, what: what.into(), todo: todo.into() }
    }

    fn failed(check: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { check, state: State::Failed, what: what.into(), todo: todo.into() }
    }

    fn json(&self) -> Value {
        json!({ "check": self.check, "state": self.state.name(), "what": self.what, "do": self.todo })
    }
}

/// What the checks look at.
struct Scene {
    settings: Settings,
    role: Role,
    env: Env,
    /// A node of this very configuration is running.
    running: bool,
}

/// Looks at everything, prints what was found, and fails if something does not work.
pub fn run(global: &Global, args: &DoctorArgs) -> Result<(), Failure> {
    // The flag says how to print here, not how to log.
    let settings = crate::settings(&Global { json: false, ..global.clone() }, &[])?;
    let findings = crate::block_on(async {
        let env = system_env()?;
        if args.from.is_empty() {
            return Ok(examine(settings, args.role.map(Into::into), env).await);
        }
        let role = guess(&settings);
        let scene = Scene { settings, role, env, running: true };
        Ok(way::check(&scene, &args.from, args.ca.as_deref()).await)
    })?;
    for finding in &findings {
        if global.json {
            println!("{}", finding.json());
        } else {
            println!("{:8} {:13} {}", finding.state.name(), finding.check, finding.what);
            if !finding.todo.is_empty() {
                println!("{:8} {:13} -> {}", "", "", finding.todo);
            }
        }
    }
    let count = |state| findings.iter().filter(|f| f.state == state).count();
    let (warnings, failed) = (count(State::Warning), count(State::Failed));
    if global.json {
        println!("{}", json!({ "ok": failed == 0, "warnings": warnings, "failed": failed }));
    } else {
        println!("{} checks, {warnings} warnings, {failed} failed", findings.len());
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Property) }
}

/// What the configuration is for, as far as it tells.
fn guess(settings: &Settings) -> Role {
    if !settings.core.is_empty() {
        Role::Edge
    } else if settings.gossip_seeds.iter().any(|seed| seed.region.is_some()) {
        Role::Ipconf
    } else {
        Role::Region
    }
}

async fn examine(settings: Settings, role: Option<Role>, env: Env) -> Vec<Finding> {
    let role = role.unwrap_or_else(|| guess(&settings));
    let running = is_running(&settings, &env).await;
    let scene = Scene { settings, role, env, running };
    let mut findings = vec![configuration(&scene)];
    if findings.iter().any(|finding| finding.state == State::Failed) {
        // Without names there are no files and no peers to look for.
        findings.extend(machine::check(&scene));
        return findings;
    }
    findings.extend(machine::check(&scene));
    findings.extend(listening::check(&scene));
    findings.extend(identity::check(&scene));
    findings.extend(storage::check(&scene));
    findings.extend(database::check(&scene).await);
    findings.extend(routes::check(&scene).await);
    findings.extend(reach::check(&scene).await);
    findings
}

/// Whether what the role can't do without is set.
fn configuration(scene: &Scene) -> Finding {
    let (check, settings, role) = ("configuration", &scene.settings, scene.role.name());
    let edges = scene.role != Role::Ipconf;
    let missing = [
        settings.region_id().err(),
        settings.region_name().err(),
        settings.region_at().err().filter(|_| edges),
        settings.advertised().err().filter(|_| edges),
    ];
    let mut missing: Vec<String> = missing.into_iter().flatten().flat_map(|error| error.0).collect();
    if scene.role == Role::Edge && settings.core.is_empty() {
        missing.push("core is empty: give the node addresses of the region's core".into());
    }
    if scene.role == Role::Ipconf && settings.gossip_seeds.is_empty() {
        missing.push("it names no region whose edges are to be listed: set gossip.seeds".into());
    }
    if !missing.is_empty() {
        return Finding::failed(check, format!("valid, but not enough for {role}"), missing.join("; "));
    }
    let state = if scene.running { "and is running" } else { "and is not running" };
    Finding::ok(check, format!("enough for {role} {}, {state}", settings.node_name().unwrap_or_default()))
}

/// Where the admin listener of this configuration is asked from this machine.
fn admin_of(settings: &Settings) -> SocketAddr {
    let at: SocketAddr = settings.admin_listen();
    if at.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], at.port())) } else { at }
}

/// Asks the admin address whether a node of this name and data serves there.
async fn is_running(settings: &Settings, env: &Env) -> bool {
    let at = admin_of(settings);
    if at.port() == 0 {
        return false;
    }
    let Ok(request) = Request::get("/config").body(Full::<Bytes>::default()) else { return false };
    let client = HttpClient::new(env.clone(), None);
    let Ok(answer) = client.request(at, "localhost", request, CONFIG_BYTES, RUNNING_WITHIN).await else { return false };
    let Ok(config) = serde_json::from_slice::<Value>(answer.body()) else { return false };
    let value = |key: &str| {
        let keys = config["keys"].as_array()?;
        Some(keys.iter().find(|k| k["key"] == key)?["value"].as_str()?.to_owned())
    };
    let own = |key: &str| settings.show().into_iter().find(|(name, ..)| *name == key).and_then(|(_, value, _)| value);
    ["name", "data", "region.id"].iter().all(|key| value(key) == own(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn settings(flags: &[(&str, &str)]) -> Settings {
        let flags = flags.iter().map(|(key, value)| ("--set".into(), (*key).into(), (*value).into())).collect();
        Sources { flags, ..Sources::default() }.load().unwrap()
    }

    fn scene(flags: &[(&str, &str)], role: Role) -> Scene {
        // Only to make an environment, which a check here does not use.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let env = runtime.block_on(async { system_env().unwrap() });
        Scene { settings: settings(flags), role, env, running: false }
    }

    #[test]
    fn the_role_is_guessed_from_what_only_it_has() {
        assert_eq!(guess(&settings(&[])), Role::Region);
        assert_eq!(guess(&settings(&[("core", "192.0.2.1:7412")])), Role::Edge);
        assert_eq!(guess(&settings(&[("gossip.seeds", "1@192.0.2.1:7413")])), Role::Ipconf);
    }

    #[test]
    fn what_a_role_lacks_is_named_all_at_once() {
        let found = configuration(&scene(&[], Role::Region));
        assert_eq!(found.state, State::Failed);
        for key in ["region.id", "region.name", "region.at", "advertise"] {
            assert!(found.todo.contains(&format!("{key} is not set")), "{}", found.todo);
        }
        let whole = [("region.id", "1"), ("region.name", "eu"), ("region.at", "1,1"), ("listen.ip", "127.0.0.1")];
        let found = configuration(&scene(&whole, Role::Region));
        assert_eq!((found.state, found.what.as_str()), (State::Ok, "enough for region eu-e1, and is not running"));
        assert!(configuration(&scene(&whole, Role::Edge)).todo.contains("core is empty"));
        assert!(configuration(&scene(&whole, Role::Ipconf)).todo.contains("gossip.seeds"));
    }
}
