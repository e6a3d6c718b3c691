//! A script, played: the system, its clients, the load, the faults.
//!
//! One task does everything in turn, every two milliseconds: what is due of the load, what is due of the faults, what
//! was heard of processes and commands. Clients run beside it on the same thread. Commands and processes are looked at,
//! never waited for.

mod steps;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tern_net::env::Env;
use tern_net::system::system_env;
use tern_netsim_verdict::Regions;
use tokio::time::{Instant, sleep};

use self::steps::Step;
use super::crowd::{self, Crowd, Doors};
use super::error::ChaosError;
use super::figures::judge;
use super::keeper::Keeper;
use super::limits::{BURST, LIVE_WITHIN, LOOK_EVERY, READ_EVERY, READY_WITHIN, SHARED_WITHIN, TAIL, TICK};
use super::local::{Local, find_tern};
use super::record::{Record, Report};
use super::script::{Script, StagingTarget, Target, Tokens};
use super::tables::{self, Tables};

/// What a run needs besides its script.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The `tern` program; beside this one, if not said.
    pub tern: Option<PathBuf>,
    /// The record goes into a directory of the script's name below it.
    pub out: PathBuf,
    /// Whether what happens is also said on standard error.
    pub loud: bool,
}

/// Plays a script. Takes as long as its load does, and a little more.
pub fn play(script: &Script, surroundings: &Surroundings) -> Result<Report, ChaosError> {
    // Where a simulation's randomness takes the place of the system's, it must not be the same in each run.
    crate::random::seed_from_system().map_err(ChaosError::io("reading /dev/urandom"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(ChaosError::io("making a runtime"))?.block_on(run(script, surroundings))
}

async fn run(script: &Script, surroundings: &Surroundings) -> Result<Report, ChaosError> {
    let env = system_env().map_err(ChaosError::io("making an environment"))?;
    let mut record = Record::begin(&surroundings.out.join(&script.name), surroundings.loud)?;
    let scratch = tempfile::Builder::new().prefix("tern-chaos-").tempdir();
    let scratch = scratch.map_err(ChaosError::io("making a directory"))?.keep();
    let said = File::create(record.logs().join("undo.log")).map_err(ChaosError::io("opening a log"))?;
    let mut keeper = Keeper::start(&scratch, said)?;
    let regions = script.regions();
    let users = crowd::users(&regions, script.load.clients);
    let (local, doors, users) = match &script.target {
        Target::Local(target) => {
            let tern = find_tern(surroundings.tern.as_deref())?;
            record.say(0, "system", "local", &format!("{}, below {}", tern.display(), scratch.display()))?;
            let mut local = Local::prepare(tern, target, &scratch, &record.logs())?;
            start_all(&mut local, &mut keeper).await?;
            let dispatch = local.dispatch().into_iter();
            let dispatch = dispatch.map(|(region, at)| (region, at.to_string(), "localhost".to_owned())).collect();
            let doors = Doors { dispatch, roots: crowd::roots(&local.roots())? };
            let with = |(user, region): (String, String)| {
                let token = local.token(&user)?;
                Ok((user, region, token))
            };
            let users = users.into_iter().map(with).collect::<Result<Vec<_>, ChaosError>>()?;
            (Some(local), doors, users)
        }
        Target::Staging(staging) => {
            let (doors, users) = of_staging(staging, users)?;
            (None, doors, users)
        }
    };
    let name = format!("{:08x}", env.rng.u64() >> 32);
    let count = usize::try_from(script.load.conversations).unwrap_or(usize::MAX);
    let crowd = Crowd::open(&env, &users, &doors, count, script.load.bytes, &name)?;
    let tables = match (&local, script.bounds.routes_complete) {
        (Some(local), Some(_)) => Some(Tables::watch(&env, local.admins(), crowd.clock())),
        _ => None,
    };
    let mut play = Play { script, record, keeper, local, crowd, tables };
    play.wait_until_live(&users).await?;
    play.wait_until_shared(&env).await?;
    play.load().await?;
    play.settle().await?;
    play.end(&regions).await
}

async fn start_all(local: &mut Local, keeper: &mut Keeper) -> Result<(), ChaosError> {
    for name in local.names() {
        local.start(&name, keeper)?;
        let until = Instant::now() + READY_WITHIN;
        while !local.serves(&name) {
            if local.ended(&name, keeper)?.is_some() || Instant::now() > until {
                return Err(local.not_ready(&name));
            }
            sleep(TICK).await;
            local.listen();
        }
    }
    Ok(())
}

type Users = Vec<(String, String, String)>;

fn of_staging(staging: &StagingTarget, users: Vec<(String, String)>) -> Result<(Doors, Users), ChaosError> {
    let door = |door: &super::script::Door| (door.region.clone(), door.address.clone(), door.server_name.clone());
    let doors = Doors { dispatch: staging.dispatch.iter().map(door).collect(), roots: crowd::roots(&staging.ca)? };
    let of_file = match &staging.tokens {
        Tokens::File(path) => Some((path, crowd::tokens_of_file(path)?)),
        Tokens::Command(_) => None,
    };
    let token = |user: &str| match (&staging.tokens, &of_file) {
        (Tokens::Command(command), _) => token_of_command(command, user),
        (Tokens::File(path), of_file) => {
            let token = of_file.as_ref().and_then(|(_, tokens)| tokens.get(user));
            let missing = || ChaosError::Script(format!("{} has no token for {user}", path.display()));
            token.cloned().ok_or_else(missing)
        }
    };
    let with = |(user, region): (String, String)| token(&user).map(|token| (user, region, token));
    Ok((doors, users.into_iter().map(with).collect::<Result<_, _>>()?))
}

fn token_of_command(command: &str, user: &str) -> Result<String, ChaosError> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).env("CHAOS_USER", user).stdin(Stdio::null());
    let output = shell.output().map_err(ChaosError::io("running token_command"))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && !said.is_empty() {
        return Ok(said);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint = complaint.trim();
    let tail = complaint.char_indices().rev().nth(TAIL).map_or(complaint, |(at, _)| &complaint[at..]);
    Err(ChaosError::Script(format!("token_command gave no token for {user}: {}; it says: {tail}", output.status)))
}

/// A run in progress.
struct Play<'a> {
    script: &'a Script,
    record: Record,
    keeper: Keeper,
    local: Option<Local>,
    crowd: Crowd,
    tables: Option<Tables>,
}

impl Play<'_> {
    fn say(&mut self, what: &'static str, who: &str, text: &str) -> Result<(), ChaosError> {
        self.record.say(self.crowd.now_ns(), what, who, text)
    }

    /// Waits until the core nodes of each region of one's own have their parts of it: what a start moves is not the load's.
    async fn wait_until_shared(&mut self, env: &Env) -> Result<(), ChaosError> {
        let Some(regions) = self.local.as_ref().map(Local::admins) else { return Ok(()) };
        for nodes in regions.iter().filter(|nodes| nodes.len() > 1) {
            let until = Instant::now() + SHARED_WITHIN;
            loop {
                let mut said = BTreeSet::new();
                for node in nodes {
                    said.insert(tables::shares(env, *node).await);
                }
                let parts = said.first().cloned().flatten().unwrap_or_default();
                let (least, most) = (parts.values().min().copied(), parts.values().max().copied());
                let even = least.zip(most).is_some_and(|(least, most)| most <= least + 1);
                if said.len() == 1 && parts.len() == nodes.len() && even {
                    let words: Vec<String> = parts.iter().map(|(node, shares)| format!("{node} {shares}")).collect();
                    self.say("shared", "region", &format!("shares of its core nodes: {}", words.join(", ")))?;
                    break;
                }
                if Instant::now() > until {
                    return Err(ChaosError::Shared(format!("{said:?}")));
                }
                sleep(TICK).await;
            }
        }
        Ok(())
    }

    async fn wait_until_live(&mut self, users: &Users) -> Result<(), ChaosError> {
        let until = Instant::now() + LIVE_WITHIN;
        loop {
            let not = self.crowd.not_live(users);
            if not.is_empty() {
                if Instant::now() > until {
                    let first: Vec<&str> = not.iter().take(3).map(String::as_str).collect();
                    let all = format!("{} of {} clients are not live: {}", not.len(), users.len(), first.join("; "));
                    return Err(ChaosError::Clients(all));
                }
                sleep(TICK).await;
                continue;
            }
            return self.say("live", "clients", &format!("all {} are connected and up to date", users.len()));
        }
    }

    /// The load, and the faults in it.
    async fn load(&mut self) -> Result<(), ChaosError> {
        let load = &self.script.load;
        let words = format!(
            "{} messages a second in {} conversations, for {} s",
            load.rate,
            load.conversations,
            load.time.as_secs_f64()
        );
        self.say("begins", "load", &words)?;
        let began = Instant::now();
        let mut steps: Vec<Step> =
            self.script.faults.iter().enumerate().map(|(i, fault)| Step::new(i, fault)).collect();
        let mut written = 0_u64;
        let mut read_next = Duration::ZERO;
        let mut dead = BTreeSet::new();
        loop {
            let now = began.elapsed();
            // Faults that were held up strike under load, too.
            let all_over = steps.iter().all(Step::is_over);
            let end = if all_over { load.time } else { Duration::MAX };
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is positive and below 2^53")]
            let due = (now.min(end).as_secs_f64() * load.rate) as u64;
            for _ in 0..due.saturating_sub(written).min(BURST) {
                self.crowd.write()?;
                written += 1;
            }
            let over: BTreeSet<String> = steps.iter().filter_map(Step::over_id).collect();
            for step in &mut steps {
                step.advance(now, &over, self)?;
            }
            if now >= read_next {
                read_next = now + READ_EVERY;
                self.look_at_processes(&steps, &mut dead)?;
            }
            if now >= load.time && written >= due && all_over {
                break;
            }
            sleep(TICK).await;
        }
        self.say("ends", "load", &format!("{written} messages"))
    }

    fn look_at_processes(&mut self, steps: &[Step], dead: &mut BTreeSet<String>) -> Result<(), ChaosError> {
        let now_ns = self.crowd.now_ns();
        let Some(local) = &mut self.local else { return Ok(()) };
        let memory = local.memory();
        let words: Vec<String> = memory.iter().map(|(name, bytes)| format!("{name} {} MiB", bytes >> 20)).collect();
        self.record.say_quietly(now_ns, "memory", "processes", &words.join(", "))?;
        self.crowd.observed().memory.extend(memory.into_iter().map(|(name, bytes)| (now_ns, name, bytes)));
        for name in local.names() {
            if steps.iter().any(|step| step.holds(&name)) {
                dead.remove(&name);
                continue;
            }
            if let Some(how) = local.ended(&name, &mut self.keeper)?
                && dead.insert(name.clone())
            {
                self.crowd.observed().died += 1;
                self.record.say(now_ns, "died", &name, &format!("{how}, though nobody wanted it to"))?;
            }
        }
        Ok(())
    }

    /// Waits until everything is acked and shown.
    async fn settle(&mut self) -> Result<(), ChaosError> {
        let until = Instant::now() + self.script.load.settle;
        loop {
            let (waiting, unseen) = self.crowd.observed().missing();
            if (waiting, unseen) == (0, 0) || Instant::now() > until {
                let words = format!("{waiting} messages wait for their ack, {unseen} acked ones are not shown");
                return self.say("settled", "load", &words);
            }
            self.crowd.fetch_older().await;
            sleep(LOOK_EVERY).await;
        }
    }

    async fn end(mut self, regions: &[String]) -> Result<Report, ChaosError> {
        self.crowd.fetch_older().await;
        let readings = self.crowd.read()?;
        self.crowd.observed().readings = readings;
        if let Some(tables) = &self.tables {
            self.crowd.observed().routes = tables.seen();
        }
        let observed = self.crowd.observed().clone();
        if observed.missed_events > 0 {
            let text = format!("{} events came too fast: times are not known", observed.missed_events);
            self.record.trouble(self.crowd.now_ns(), "clients", &text)?;
        }
        if observed.re_offered > 0 {
            self.say("re-offered", "clients", &format!("{} acked messages to another region", observed.re_offered))?;
        }
        let numbering = if regions.len() == 1 { Regions::One } else { Regions::Several };
        let judged = judge(&observed, &self.script.bounds, numbering, self.record.troubles());
        let end_ns = self.crowd.now_ns();
        for (user, text) in self.crowd.diagnostics() {
            let path = self.record.logs().join(format!("{user}.txt"));
            std::fs::write(path, text).map_err(ChaosError::io("writing what a client says"))?;
        }
        self.crowd.close().await;
        if let Some(local) = &mut self.local {
            local.stop_all(&mut self.keeper).await?;
            let left = local.keyspaces();
            if !left.is_empty() {
                let text = format!("these keyspaces are left in the database: {}", left.join(", "));
                self.record.say(end_ns, "left", "database", &text)?;
            }
        }
        self.record.end(&self.script.name, &self.script.about, judged, &observed)
    }
}

/// The end of what a command said.
fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL)..]).trim().to_owned()
}
