//! Every configuration key: its type, its default, and what it means. The documentation comments are what
//! `tern config default` prints, so that a key and its description can't part.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tern_ipconf::IpPrefix;

use super::database::{ArchiveUrl, Replicas, StoreKind};
use super::gossip::Seed;
use super::origin::WebOrigin;
use super::routes::RoutesKind;
use super::scope::{self, Reload, Role};
use super::source::{Found, Layers, Source};
use super::value::{ByteSize, HostPort, Peer, Position, Raw, Secret, Value};

/// A key as `config default` and `config check` show it.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted name.
    pub name: &'static str,
    /// Default as TOML; empty: unset.
    pub default: &'static str,
    /// Lines of description.
    pub doc: &'static [&'static str],
    /// Type and unit in words.
    pub shape: &'static str,
    /// What becomes of a change while the process runs.
    pub reload: Reload,
    /// Which processes use it.
    pub roles: &'static [Role],
    /// Least and most, as they would be written; None: whatever the type takes.
    pub range: Option<(&'static str, &'static str)>,
}

macro_rules! range {
    () => {
        None
    };
    ($least:literal, $most:literal) => {
        Some(($least, $most))
    };
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty = $name:literal, $default:literal, $reload:ident,
        $roles:ident $(, $least:literal to $most:literal)?;)+) => {
        /// The configuration of one process, every value with its type.
        #[derive(Clone, Debug)]
        pub struct Settings {
            $($(#[doc = $doc])+ pub $field: $type,)+
            sources: BTreeMap<&'static str, Source>,
        }

        /// All keys, in the order in which they are documented.
        pub const KEYS: &[Key] = &[$(Key {
            name: $name,
            default: $default,
            doc: &[$($doc),+],
            shape: <$type as Value>::SHAPE,
            reload: Reload::$reload,
            roles: scope::$roles,
            range: range!($($least, $most)?),
        }),+];

        impl Settings {
            /// Types the values found; None where a problem was added.
            pub(super) fn build(layers: &Layers, problems: &mut Vec<String>) -> Option<Self> {
                let before = problems.len();
                let mut sources = BTreeMap::new();
                $(let $field: Option<$type> = typed($name, $default, layers, &mut sources, problems);)+
                $(check_range::<$type>($name, &$field, range!($($least, $most)?), &sources, problems);)+
                if problems.len() != before {
                    return None;
                }
                Some(Self { $($field: $field?,)+ sources })
            }

            /// (key, value as TOML or None for unset, where it came from), in order of the keys' names.
            pub fn show(&self) -> Vec<(&'static str, Option<String>, &Source)> {
                let mut shown = vec![$(($name, self.$field.show(), self.source($name)),)+];
                shown.sort_by_key(|(name, ..)| *name);
                shown
            }

            /// Keys whose values differ from those of `other`, in the order in which they are documented.
            pub fn changed(&self, other: &Self) -> Vec<&'static Key> {
                let mut changed = Vec::new();
                $(if self.$field != other.$field {
                    changed.extend(key($name));
                })+
                changed
            }

            /// Takes the value of one key, and where it came from, from `other`.
            pub fn take(&mut self, name: &str, other: &Self) {
                $(if name == $name {
                    self.$field.clone_from(&other.$field);
                    match other.sources.get($name) {
                        Some(source) => self.sources.insert($name, source.clone()),
                        None => self.sources.remove($name),
                    };
                })+
            }
        }
    };
}

settings! {
    /// Directory of everything this process keeps: store, keys, certificates.
    data: PathBuf = "data", "\"tern-data\"", Restart, ALL;
    /// Name of the deployment: the audience of its tokens. All regions of a deployment have the same.
    deployment: String = "deployment", "\"tern\"", Restart, ALL;
    /// Name of this node, unique in its region: in logs, in certificates, and as the name of its edge.
    /// Unset: `<region.name>-e1`.
    name: Option<String> = "name", "", Restart, NODES;

    /// This region's number, 1 to 255, never used twice in a deployment.
    region_id: Option<u8> = "region.id", "", Restart, NODES, "1" to "255";
    /// This region's short name: a-z, 0-9 and "-", at most 16 bytes.
    region_name: Option<String> = "region.name", "", Restart, NODES;
    /// Where this region is, for ranking by distance.
    region_at: Option<Position> = "region.at", "", Restart, NODES;
    /// Make a new store where there is none. Off by default: an unmounted disk must not become a new region.
    region_init: bool = "region.init", "false", Restart, REGION;
    /// The other regions, by their node ports; each region must list all others. One that several processes share may be
    /// listed once for each of some of them: the first that answers names the rest. A change counts at once, but where
    /// several processes share this region; see `tern region add`.
    peers: Vec<Peer> = "peers", "[]", AtOnce, REGION;
    /// Several processes serve this region, each with a name of its own and all on one database: they share its
    /// conversations and users out among themselves, and each takes over from those that die.
    region_shared: bool = "region.shared", "false", Restart, REGION;
    /// This process's part of a shared region beside the others': with 2 it has twice as much as one with 1.
    region_weight: u32 = "region.weight", "1", Restart, REGION, "1" to "1000";
    /// Where the other processes of a shared region and its edges reach this one's node port. Unset: listen.ip with
    /// listen.node, which must then be a real address.
    region_advertise: Option<SocketAddr> = "region.advertise", "", Restart, REGION;
    /// Nodes that speak a lower version of the node wire are refused. Raise it, in all regions, when no older program
    /// runs any more and none shall come back: what is new in a later version is used from then on.
    nodes_oldest_version: u32 = "nodes.oldest_version", "1", Restart, REGION;
    /// Edges only: node ports of the core nodes of the region. All are dialled, and those that they name besides.
    core: Vec<HostPort> = "core", "[]", Restart, EDGE;

    /// Address that clients and nodes are served on.
    listen_ip: IpAddr = "listen.ip", "\"0.0.0.0\"", Restart, NODES;
    /// Further addresses that clients are served on, such as `[::]:443`; port 0 is the client port.
    listen_also: Vec<SocketAddr> = "listen.also", "[]", Restart, EDGES;
    /// Port for clients, QUIC and TCP. Unset: 7400 + 10 x region.
    listen_client: Option<u16> = "listen.client", "", Restart, NODES;
    /// Port for dispatch (HTTPS). Unset: the client port + 1.
    listen_dispatch: Option<u16> = "listen.dispatch", "", Restart, DISPATCH;
    /// Port for other nodes (QUIC, UDP). Where several processes share the region they listen on it over TCP, too, so that the
    /// others hear at once that one has ended. Unset: the client port + 2.
    listen_node: Option<u16> = "listen.node", "", Restart, REGION;
    /// Address and port of /metrics, /livez, /readyz, /startupz, /config and /reload: plain HTTP without a login, so
    /// keep it private. The last two answer on the machine itself only.
    /// Unset: loopback, the client port + 3.
    listen_admin: Option<SocketAddr> = "listen.admin", "", Restart, NODES;
    /// Address and port (UDP) for gossip between the nodes of a region. Unset: listen.ip, the client port + 3.
    listen_gossip: Option<SocketAddr> = "listen.gossip", "", Restart, NODES;
    /// Addresses that clients are told to reach this edge by. Unset: listen.ip with the client port, which
    /// must then be a real address.
    advertise: Vec<SocketAddr> = "advertise", "[]", AtOnce, EDGES;
    /// What fails together with this edge, a rack or a zone: dispatch spreads its answers over at least two.
    /// Unset: the region's name.
    failure_domain: Option<String> = "failure_domain", "", AtOnce, EDGES;

    /// Certificate chain shown to clients (PEM). Unset: `<data>/pki/<name>.public.pem`.
    tls_public_cert: Option<PathBuf> = "tls.public_cert", "", AtOnce, NODES;
    /// Its key (PEM). Unset: `<data>/pki/<name>.public.key`.
    tls_public_key: Option<PathBuf> = "tls.public_key", "", AtOnce, NODES;
    /// Certificate chain shown to other nodes (PEM). Unset: `<data>/pki/<name>.node.pem`.
    tls_node_cert: Option<PathBuf> = "tls.node_cert", "", AtOnce, EDGES;
    /// Its key (PEM). Unset: `<data>/pki/<name>.node.key`.
    tls_node_key: Option<PathBuf> = "tls.node_key", "", AtOnce, EDGES;
    /// The authority that nodes trust each other by (PEM). Unset: `<data>/pki/node-ca.pem`.
    tls_node_ca: Option<PathBuf> = "tls.node_ca", "", AtOnce, EDGES;
    /// Keys that tokens are checked with: a JWK set of Ed25519 (OKP) or HS256 (oct) keys, each with a kid.
    /// Unset: `<data>/tokens.jwk`.
    tokens_file: Option<PathBuf> = "tokens.file", "", AtOnce, TOKENS;
    /// The deployment's receipt key, 64 hex digits; instead of the file. Best given by TERN_RECEIPT_KEY. Several, with
    /// commas: the first signs, all are believed.
    receipt_key: Option<Secret> = "receipt.key", "", Restart, REGION;
    /// File with the receipt key as 64 hex digits, the same in every region; older keys below it are still believed.
    /// Unset: `<data>/receipt.key`.
    receipt_key_file: Option<PathBuf> = "receipt.key_file", "", Restart, REGION;
    /// File with the salt of direct conversations' ids as 64 hex digits, the same in every region, never
    /// changed. Unset: `<data>/direct.salt`.
    direct_salt_file: Option<PathBuf> = "direct.salt_file", "", Restart, REGION;

    /// Nodes that this one joins the gossip of its region through; they need not run all the time. `tern
    /// ipconf` joins the gossip of every region that it lists: give some nodes of each, with the region's number,
    /// such as `["1@192.0.2.1:7413", "2@192.0.2.2:7423"]`. Unset: an edge asks the hosts of `core`, one port
    /// above each.
    gossip_seeds: Vec<Seed> = "gossip.seeds", "[]", Restart, NODES;
    /// Address and port that other nodes send gossip to. Unset: listen.gossip if that names an address, else the
    /// address that this machine has towards the first seed, else that of `advertise`.
    gossip_advertise: Option<SocketAddr> = "gossip.advertise", "", Restart, NODES;
    /// The deployment's gossip key, 64 hex digits; instead of the file. Best given by TERN_GOSSIP_KEY. Several, with
    /// commas: the first seals, all open.
    gossip_key: Option<Secret> = "gossip.key", "", AtOnce, NODES;
    /// File with the gossip key as 64 hex digits, the same on every node; `tern pki` makes it from the receipt
    /// key. With several keys, one a line, the first seals and all open. Unset: `<data>/gossip.key`, and if there is
    /// none, the receipt key yields it.
    gossip_key_file: Option<PathBuf> = "gossip.key_file", "", AtOnce, NODES;

    /// Connections that this edge takes.
    edge_capacity: u32 = "edge.capacity", "100000", AtOnce, EDGES, "1" to "13000000";
    /// Sessions that clients on QUIC may take up again, each once: three are given with each handshake, and save the next
    /// one a round trip. The oldest give way; about 160 bytes each. 0 = none.
    edge_tickets: u32 = "edge.tickets", "40000", Restart, EDGES, "0" to "4000000";
    /// How long a stopping edge takes to send its clients away.
    edge_drain_window: Duration = "edge.drain_window", "\"5s\"", AtOnce, EDGES, "0s" to "1h";
    /// How long an edge keeps its clients while the core node that has them is stopped in order and started again. Only
    /// where no other core node of the region takes over; one that dies is waited for 5 s. 0 = not at all.
    edge_core_restart: Duration = "edge.core_restart", "\"10s\"", Restart, EDGES, "0s" to "5m";
    /// Addresses that clients are sent to when this edge drains. Unset: a region names edges of other regions, an
    /// edge the least loaded others of its own, and clients may choose from the list they have.
    edge_alternates: Vec<SocketAddr> = "edge.alternates", "[]", AtOnce, EDGES;
    /// Whose web pages may connect to this edge from a browser, by WebSocket or polls. Empty: those of any site; a
    /// page has nothing to connect with but a token, since no cookie is looked at.
    edge_origins: Vec<WebOrigin> = "edge.origins", "[]", Restart, EDGES;
    /// Load balancers in front of this edge whose `X-Forwarded-For` counts, for WebSockets and polls: who asks is then
    /// the client that they name, for limits of handshakes and for the address that it is told. Those who pass TCP or
    /// UDP on as it is belong here no more than clients do.
    edge_trusted_proxies: Vec<IpPrefix> = "edge.trusted_proxies", "[]", Restart, EDGES;
    /// Interval of a client's heartbeats while it is in the foreground.
    heartbeat_foreground: Duration = "heartbeat.foreground", "\"25s\"", AtOnce, NODES, "1ms" to "10m";
    /// Shortest interval of heartbeats in the background.
    heartbeat_background_min: Duration = "heartbeat.background_min", "\"60s\"", AtOnce, NODES, "1ms" to "5m";
    /// Longest interval of heartbeats in the background; connections end after 2.5 times as long a silence.
    heartbeat_background_max: Duration = "heartbeat.background_max", "\"300s\"", AtOnce, NODES, "1ms" to "5m";

    /// Messages a second that a user may send in the long run.
    limit_sends_per_second: u32 = "limits.sends_per_second", "20", AtOnce, EDGES, "1" to "1000000";
    /// Messages that a user may send at once.
    limit_sends_burst: u32 = "limits.sends_burst", "60", AtOnce, EDGES, "1" to "1000000";
    /// Failed handshakes a second from one address block (IPv4 /24, IPv6 /56).
    limit_failed_handshakes: u32 = "limits.failed_handshakes_per_second", "20", AtOnce, EDGES, "1" to "1000000";
    /// A connection that has not said hello by then is closed.
    limit_hello_timeout: Duration = "limits.hello_timeout", "\"5s\"", AtOnce, EDGES, "1ms" to "5m";

    /// Where the region keeps what must outlive it: on its own disk below `data`, or on ScyllaDB (or Cassandra), which
    /// the next keys name. A region can't be moved from one to the other.
    store_kind: StoreKind = "store.kind", "\"embedded\"", Restart, REGION;
    /// ScyllaDB: some of its nodes; the others are learned from them.
    store_nodes: Vec<HostPort> = "store.nodes", "[]", Restart, REGION;
    /// ScyllaDB: the datacenter of this region. Nodes of other datacenters are not asked.
    store_datacenter: Option<String> = "store.datacenter", "", Restart, REGION;
    /// ScyllaDB: the rack of this process, whose nodes are asked first.
    store_rack: Option<String> = "store.rack", "", Restart, REGION;
    /// ScyllaDB: the keyspace of this region, in its datacenter only. Unset: `tern_<region.name>`, with "_" for "-".
    store_keyspace: Option<String> = "store.keyspace", "", Restart, REGION;
    /// ScyllaDB: the keyspace of the messages. Regions on one cluster share it; it has replicas in all datacenters.
    store_timeline_keyspace: String = "store.timeline_keyspace", "\"tern_timeline\"", Restart, REGION;
    /// ScyllaDB: replicas in each datacenter that has regions, for `tern store init`, such as `["dc1:3", "dc2:3"]`.
    store_replication: Vec<Replicas> = "store.replication", "[]", Restart, REGION;
    /// ScyllaDB: the name to log in by. Unset: none.
    store_user: Option<String> = "store.user", "", Restart, REGION;
    /// ScyllaDB: its password. Best given by TERN_STORE_PASSWORD.
    store_password: Option<Secret> = "store.password", "", Restart, REGION;
    /// ScyllaDB: what a request may take.
    store_request_timeout: Duration = "store.request_timeout", "\"3s\"", Restart, REGION, "100ms" to "60s";
    /// Free disk below which messages are refused with store_full.
    store_disk_reserve: ByteSize = "store.disk_reserve", "\"256MiB\"", Restart, REGION;
    /// Memory for the store's block cache.
    store_cache: ByteSize = "store.cache", "\"64MiB\"", Restart, REGION, "1MiB" to "1024GiB";
    /// Where old messages move to, away from the store's own disk or the database, and are read from as before: a
    /// directory of another disk (`file:///mnt/archive`), or a bucket (`s3://BUCKET/PREFIX`). ScyllaDB: the same place for
    /// all regions of a database. Once something is there the key must stay set. Unset: nothing moves.
    store_tier_url: Option<ArchiveUrl> = "store.tier.url", "", Restart, REGION;
    /// How old the newest message of a bucket of 4,096 must be for the bucket to move. Very long: nothing moves any more.
    store_tier_after: Duration = "store.tier.after", "\"90d\"", Restart, REGION, "1m" to "36500d";
    /// How often it is looked what may move. An erased body is out of the archive after at most so long.
    store_tier_every: Duration = "store.tier.every", "\"1h\"", Restart, REGION, "1s" to "20h";
    /// What a request to the archive may take.
    store_tier_timeout: Duration = "store.tier.timeout", "\"10s\"", Restart, REGION, "100ms" to "60s";
    /// Memory for what was read from the archive.
    store_tier_cache: ByteSize = "store.tier.cache", "\"32MiB\"", Restart, REGION, "0" to "1024GiB";
    /// S3: where the bucket is, for others than AWS, such as `https://s3.example.com`; it must speak TLS 1.3.
    store_tier_endpoint: Option<String> = "store.tier.endpoint", "", Restart, REGION;
    /// S3: the bucket's region. Unset: that of AWS_REGION, else us-east-1.
    store_tier_region: Option<String> = "store.tier.region", "", Restart, REGION;
    /// S3: the name of the key. Unset: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what the machine's role gives.
    store_tier_key: Option<String> = "store.tier.key", "", Restart, REGION;
    /// S3: its secret. Best given by TERN_STORE_TIER_SECRET.
    store_tier_secret: Option<Secret> = "store.tier.secret", "", Restart, REGION;
    /// S3: the authorities that the server's certificate may be of (PEM). Unset: those that the system trusts.
    store_tier_ca: Option<PathBuf> = "store.tier.ca", "", Restart, REGION;
    /// Where it is known which device of a user is connected where in the region: in the memory of the core node that has
    /// the user, or also in Redis, for tools and for programs of your own. Messages need neither.
    routes_kind: RoutesKind = "routes.kind", "\"memory\"", Restart, REGION;
    /// Redis: its server, or some servers of a cluster, which name the others. Redis 7 or later, with
    /// `maxmemory-policy noeviction`.
    routes_nodes: Vec<HostPort> = "routes.nodes", "[]", Restart, REGION;
    /// Redis: what all keys of this region begin with. Unset: `tern:<deployment>:<region.name>`.
    routes_prefix: Option<String> = "routes.prefix", "", Restart, REGION;
    /// Redis: the user to log in as. Unset: the server's default one.
    routes_user: Option<String> = "routes.user", "", Restart, REGION;
    /// Redis: the password; instead of the file. Best given by TERN_ROUTES_PASSWORD.
    routes_password: Option<Secret> = "routes.password", "", Restart, REGION;
    /// Redis: file with the password, on its first line. Unset: none.
    routes_password_file: Option<PathBuf> = "routes.password_file", "", Restart, REGION;
    /// Redis: the authorities that certificates of its servers may be of (PEM), such as the system's
    /// `/etc/ssl/certs/ca-certificates.crt`. Set: connections are secured by TLS 1.3. Unset: they are not.
    routes_tls_ca: Option<PathBuf> = "routes.tls.ca", "", AtOnce, REGION;
    /// Redis: whom certificates of its servers must be for. Unset: the host that is connected to, which in a cluster is
    /// as the servers name each other.
    routes_tls_name: Option<String> = "routes.tls.name", "", Restart, REGION;
    /// Redis: certificate chain shown to servers that ask for one (PEM). Unset: none.
    routes_tls_cert: Option<PathBuf> = "routes.tls.cert", "", AtOnce, REGION;
    /// Redis: its key (PEM).
    routes_tls_key: Option<PathBuf> = "routes.tls.key", "", AtOnce, REGION;
    /// Redis: what a request may take.
    routes_request_timeout: Duration = "routes.request_timeout", "\"1s\"", Restart, REGION, "50ms" to "10s";
    /// A region that was silent for this long: clients offer their unconfirmed messages elsewhere.
    reoffer_after: Duration = "reoffer_after", "\"30s\"", Restart, REGION, "1ms" to "24h";

    /// GeoIP database in MMDB format, by country or city. Unset: the built-in DB-IP Lite country file.
    dispatch_geoip: Option<PathBuf> = "dispatch.geoip", "", AtOnce, DISPATCH;
    /// Proxies whose X-Forwarded-For is believed.
    dispatch_trusted_proxies: Vec<IpPrefix> = "dispatch.trusted_proxies", "[]", AtOnce, DISPATCH;
    /// Who may ask dispatch as another address, besides loopback.
    dispatch_operators: Vec<IpPrefix> = "dispatch.operators", "[]", AtOnce, DISPATCH;
    /// Numbers of regions to which clients are not sent. This dispatcher's answers only: set it
    /// on all, or order it for all by `tern region cordon`.
    dispatch_cordoned_regions: Vec<u8> = "dispatch.cordoned_regions", "[]", AtOnce, DISPATCH;
    /// Placement policies (TOML): weights and shares of regions, and users, countries and continents that are pinned to
    /// regions; see "Placement" in docs/OPERATIONS.md. It counts for this dispatcher's answers only: have it on all. Unset:
    /// none.
    dispatch_policies: Option<PathBuf> = "dispatch.policies", "", AtOnce, DISPATCH;
    /// Requests of one address per second; whole cities share one. Loopback and operators are not counted.
    dispatch_per_second: u32 = "dispatch.requests_per_second", "200", Restart, DISPATCH, "1" to "1000000";
    /// Requests of one address at once after a pause.
    dispatch_burst: u32 = "dispatch.requests_burst", "5000", Restart, DISPATCH, "1" to "1000000";
    /// What the certificates of edges say, for clients that verify them: {edge} and {region} are replaced.
    dispatch_edge_tls_name: String = "dispatch.edge_tls_name", "\"{edge}.{region}.tern.internal\"", Restart, DISPATCH;

    /// What is logged: a level (error, warn, info, debug, trace) or a filter such as "info,tern_edge=debug".
    log_level: String = "log.level", "\"info\"", AtOnce, ALL;
    /// Log as JSON, one object a line.
    log_json: bool = "log.json", "false", Restart, ALL;
}

impl Settings {
    /// Where the value of a key came from.
    pub fn source(&self, key: &str) -> &Source {
        self.sources.get(key).unwrap_or(&Source::Default)
    }
}

/// The value of one key; None where a problem was added.
fn typed<T: Value>(
    name: &'static str,
    default: &str,
    layers: &Layers,
    sources: &mut BTreeMap<&'static str, Source>,
    problems: &mut Vec<String>,
) -> Option<T> {
    let Some(found) = layers.get(name) else { return from_default(default) };
    sources.insert(name, found.source.clone());
    match read(found) {
        Ok(value) => Some(value),
        Err(what) => {
            problems.push(format!("{}: {name} {what}", found.source));
            None
        }
    }
}

/// The key of a name.
pub fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Adds a problem where a value lies outside of its key's range.
fn check_range<T: Value>(
    name: &'static str,
    value: &Option<T>,
    range: Option<(&str, &str)>,
    sources: &BTreeMap<&'static str, Source>,
    problems: &mut Vec<String>,
) {
    let (Some(value), Some((least, most))) = (value, range) else { return };
    let bound = |text: &str| T::from_text(text).ok().and_then(|bound| bound.size());
    let outside = match (value.size(), bound(least), bound(most)) {
        (Some(size), Some(least), Some(most)) => !(least..=most).contains(&size),
        _ => false,
    };
    if outside {
        let source = sources.get(name).unwrap_or(&Source::Default);
        let shown = value.show().unwrap_or_default();
        problems.push(format!("{source}: {name} is {shown}; it must be from {least} to {most}"));
    }
}

fn read<T: Value>(found: &Found) -> Result<T, String> {
    match &found.raw {
        Raw::Text(text) if found.is_text => T::from_text(text),
        raw => T::from_raw(raw),
    }
}

/// From the table's literal. None only where the literal is wrong, which a test rules out.
fn from_default<T: Value>(literal: &str) -> Option<T> {
    if literal.is_empty() {
        return T::unset();
    }
    let mut layers = Layers::new();
    super::source::file("default".as_ref(), &format!("x = {literal}"), &["x"], &mut layers, &mut Vec::new());
    T::from_raw(&layers.get("x")?.raw).ok()
}
