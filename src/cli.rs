//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tern_core::ids::UserId;

use crate::config::scope::Role;
use crate::config::value::parse_duration;

/// An instant-messaging system whose edges sit near the users and whose regions all accept writes.
#[derive(Debug, Parser)]
#[command(name = "tern", version, about, max_term_width = 100)]
pub struct Cli {
    /// For all commands.
    #[command(flatten)]
    pub global: Global,
    /// Which command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// Directory of stores, keys and certificates [default: tern-data]
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Configuration file (TOML); see `tern config default`
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON, one object a line; roles also log as JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// What is logged: error, warn, info, debug, trace, or a filter such as "info,tern_edge=debug"
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// Set any configuration key; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show it working: three regions, two clients, a killed edge, a killed region, and what was lost
    Demo(DemoArgs),
    /// Run several regions on this machine until stopped
    Dev(DevArgs),
    /// Run a region: store, core, links to other regions, dispatch and an edge. Or cut one off for clients
    Region(RegionArgs),
    /// Run a further edge of a region
    Edge(RoleArgs),
    /// Run dispatch beside regions: which edges a client should connect to
    Ipconf(IpconfArgs),
    /// Chat in this terminal
    Chat(ChatArgs),
    /// Print a token for a user, signed with the deployment's development key
    Token(TokenArgs),
    /// Make keys and certificates for a node, and what all nodes share
    Pki(PkiArgs),
    /// Measure what a region costs on this machine, beside what the same traffic costs without it
    Bench(BenchArgs),
    /// The floor that `bench` measures beside a region
    #[command(hide = true)]
    BenchFloor(RoleArgs),
    /// Look at everything that a role needs, before its start or beside it, and say what to change
    Doctor(DoctorArgs),
    /// Check, back up, restore and compact a region's store
    Store(crate::store::StoreArgs),
    /// Send the clients of a node, or of a region, elsewhere, and tell when they are gone
    Drain(crate::orders::command::DrainArgs),
    /// Show regions, nodes, links and what operators have ordered, as they change
    Top(crate::top::TopArgs),
    /// Revoke a user's tokens, or remove one of his devices, in every region
    User(crate::users::UserArgs),
    /// Say where a user's devices are connected in this region, or how its table of that stands
    Routes(crate::routes::RoutesArgs),
    /// Check or print the configuration
    Config {
        /// Which.
        #[command(subcommand)]
        action: ConfigAction,
    },
}

/// Options of `demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Leave it running and print how to join it
    #[arg(long)]
    pub keep: bool,
    /// GeoIP database (MMDB) instead of the built-in one
    #[arg(long, value_name = "FILE")]
    pub geoip: Option<PathBuf>,
}

/// Options of `dev`.
#[derive(Clone, Debug, Args)]
pub struct DevArgs {
    /// Regions, comma-separated
    #[arg(long, value_delimiter = ',', default_value = "eu,us,ap", value_name = "NAMES")]
    pub regions: Vec<String>,
    /// Ports of region N start at this + 10 x N
    #[arg(long, default_value_t = crate::cluster::BASE_PORT, value_name = "PORT")]
    pub base_port: u16,
    /// Further edges, as own processes, in the first region (at most 3)
    #[arg(long, default_value_t = 0, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(0..=3))]
    pub edges: u8,
    /// GeoIP database (MMDB) instead of the built-in one
    #[arg(long, value_name = "FILE")]
    pub geoip: Option<PathBuf>,
}

/// Options of the roles.
#[derive(Clone, Debug, Args)]
pub struct RoleArgs {
    /// Stop when standard input ends: for a parent process that must not leave this one behind
    #[arg(long)]
    pub stop_with_stdin: bool,
}

/// Options of `region`.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct RegionArgs {
    /// Instead of running one.
    #[command(subcommand)]
    pub action: Option<crate::orders::command::RegionAction>,
    /// For all roles.
    #[command(flatten)]
    pub role: RoleArgs,
    /// Make a new store where there is none
    #[arg(long)]
    pub init: bool,
    /// GeoIP database (MMDB) instead of the built-in one
    #[arg(long, value_name = "FILE")]
    pub geoip: Option<PathBuf>,
}

/// Options of `ipconf`.
#[derive(Clone, Debug, Args)]
pub struct IpconfArgs {
    /// For all roles.
    #[command(flatten)]
    pub role: RoleArgs,
    /// GeoIP database (MMDB) instead of the built-in one
    #[arg(long, value_name = "FILE")]
    pub geoip: Option<PathBuf>,
}

/// Options of `chat`.
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// Who you are
    #[arg(long, value_parser = user)]
    pub user: UserId,
    /// Whom to talk to first; /to NAME changes it
    #[arg(long, value_parser = user)]
    pub to: Option<UserId>,
    /// Region to prefer, such as "ap": its dispatch is asked first
    #[arg(long, value_name = "REGION")]
    pub near: Option<String>,
    /// HTTP proxy that everything but QUIC goes through, as `http://user:password@host:port`; "none" for none
    /// [default: HTTPS_PROXY or ALL_PROXY of the environment, but for NO_PROXY and this machine]
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
}

/// Options of `token`.
#[derive(Clone, Debug, Args)]
pub struct TokenArgs {
    /// Whose token
    #[arg(long, value_parser = user)]
    pub user: UserId,
    /// How long it is valid
    #[arg(long, default_value = "24h", value_parser = duration)]
    pub ttl: Duration,
    /// Name of the deployment [default: that of the data directory, else of the configuration]
    #[arg(long, value_name = "NAME")]
    pub audience: Option<String>,
}

/// Options of `pki`.
#[derive(Clone, Debug, Args)]
pub struct PkiArgs {
    /// The node's name, such as eu-e1
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// Its region's name, such as eu
    #[arg(long, value_name = "NAME")]
    pub region: String,
    /// Further names and addresses that it is reached by, comma-separated
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub address: Vec<String>,
}

/// Options of `doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// What the configuration is for [default: edge if `core` is set, ipconf if `gossip.seeds` name regions, else
    /// region]
    #[arg(long, value_enum, value_name = "ROLE")]
    pub role: Option<RoleName>,
    /// Instead: where the running dispatch would send a client at these addresses or in these countries (of two letters),
    /// and whether these edges can be reached from here by each transport
    #[arg(long, value_name = "ADDRESS|COUNTRY", num_args = 1.., conflicts_with = "role")]
    pub from: Vec<crate::doctor::Whence>,
    /// With `--from`: the authority that clients trust (PEM) [default: `pki/public-ca.pem` of the data directory]
    #[arg(long, value_name = "FILE", requires = "from")]
    pub ca: Option<PathBuf>,
}

/// A role, as `doctor` is told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    /// `tern region`
    Region,
    /// `tern edge`
    Edge,
    /// `tern ipconf`
    Ipconf,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Region => Role::Region,
            RoleName::Edge => Role::Edge,
            RoleName::Ipconf => Role::Ipconf,
        }
    }
}

/// Options of `bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// What to measure
    #[arg(value_enum, default_value_t = BenchPart::All)]
    pub part: BenchPart,
    /// How long each phase of messages or requests is measured
    #[arg(long, default_value_t = 6, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..=600))]
    pub seconds: u16,
    /// Pairs of users who write to each other
    #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=2000))]
    pub pairs: u16,
    /// Messages a second while latencies are measured under a steady load [default: half of the highest rate]
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: Option<u32>,
    /// Idle connections at which the server's memory is read, comma-separated
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,10000", value_name = "COUNTS",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections: Vec<u32>,
}

/// What `bench` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchPart {
    /// All of it
    All,
    /// Memory per idle connection, and the cost of connecting
    Idle,
    /// Direct messages
    Messages,
    /// A group of 200 members, and 1,000 messages to a returning device
    Group,
    /// Three times the load that the server carries, and a burst of ten times
    Overload,
    /// Rankings and dispatch
    Dispatch,
    /// What core nodes tell each other of who is where: a million users of another region
    Routes,
}

/// What to do with the configuration.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ConfigAction {
    /// Check it, and print every value and where it came from
    Check,
    /// Print a file with every key, its description and its default
    Default,
    /// Print a reference of every key as Markdown: type, range, default, roles, and when a change counts
    Doc,
}

pub(crate) fn user(text: &str) -> Result<UserId, String> {
    UserId::new(text).map_err(|e| e.to_string())
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a duration, such as 90s, 10m or 24h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_all_commands_may_stand_before_or_after_it() {
        for line in
            [["tern", "--data", "d", "token", "--user", "alice"], ["tern", "token", "--user", "alice", "--data", "d"]]
        {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.global.data.unwrap(), PathBuf::from("d"));
            assert!(matches!(cli.command, Command::Token(args) if args.user.as_str() == "alice"));
        }
    }

    #[test]
    fn a_user_id_that_is_none_is_refused_with_its_reason() {
        let long = "x".repeat(65);
        let error = Cli::try_parse_from(["tern", "token", "--user", &long]).unwrap_err().to_string();
        assert!(error.contains("at most 64"), "{error}");
    }
}
