//! Who runs beside tern: servers and clients of other systems, and what the clients tell.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tern_netsim_scenario::Plan;
use tern_netsim_scenario::plan::{LoadPlan, Target};
use tern_netsim_tun::{Lab, Process};

use super::servers::{Certificates, DOMAIN, start};
use super::told::{Order, SetUp, Told, What, text};
use super::{CompareError, Outside, Peer};
use crate::cluster::{CLIENT_PORT, DISPATCH_PORT};
use crate::real::RealError;
use crate::real::device::monotonic_ns;
use crate::real::topology::nodes;

const MQTT: &str = include_str!("mqtt.py");
const XMPP: &str = include_str!("xmpp.py");

/// What all clients told, in the order in which it was heard.
type Record = Arc<Mutex<Vec<(Peer, String, Told)>>>;

#[derive(Debug)]
struct Client {
    /// It is killed when this is dropped.
    _process: Process,
    input: ChildStdin,
}

/// Writes of the systems are so far apart, tern's first; closer where the load writes so often that the last would be told
/// together with tern's next.
const APART: Duration = Duration::from_millis(400);

/// How long after tern the peer with this number is told to write, in nanoseconds, where a load writes every `every_ns` on
/// average and there are so many peers.
fn behind_ns(number: usize, peers: usize, every_ns: u64) -> u64 {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX).saturating_add(1);
    let apart = u64::try_from(APART.as_nanos()).unwrap_or(u64::MAX).min(every_ns / count(peers));
    apart.saturating_mul(count(number))
}

/// See the module.
#[derive(Debug)]
pub struct Company {
    peers: Vec<Peer>,
    outside: Outside,
    logs: PathBuf,
    // Clients end before their servers do.
    clients: BTreeMap<(Peer, String), Client>,
    servers: Vec<Process>,
    certificates: Option<Certificates>,
    address: Ipv4Addr,
    /// The run's moment 0 by the clock of the links.
    lab_zero_ns: u64,
    record: Record,
    /// Orders to come: when, by the run's clock, in the order in which they were made; to whose client on which device.
    later: BTreeMap<(u64, u64), (Peer, String, Order)>,
    orders: u64,
    /// How much each device has written.
    counts: BTreeMap<String, u64>,
    /// By device and port of the other end: bytes up and down.
    bytes: BTreeMap<(String, u16), (u64, u64)>,
}

impl Company {
    /// Of these; nothing is started.
    pub fn new(peers: &[Peer], outside: &Outside, logs: &Path) -> Self {
        Self {
            peers: peers.to_vec(),
            outside: outside.clone(),
            logs: logs.to_owned(),
            clients: BTreeMap::new(),
            servers: Vec::new(),
            certificates: None,
            address: Ipv4Addr::UNSPECIFIED,
            lab_zero_ns: 0,
            record: Record::default(),
            later: BTreeMap::new(),
            orders: 0,
            counts: BTreeMap::new(),
            bytes: BTreeMap::new(),
        }
    }

    /// Starts the servers, in the host of the first region, and waits until all serve.
    pub fn serve(&mut self, lab: &Lab, plan: &Plan) -> Result<(), RealError> {
        self.start_servers(lab, plan).map_err(beside)
    }

    fn start_servers(&mut self, lab: &Lab, plan: &Plan) -> Result<(), CompareError> {
        let all = nodes(plan);
        let Some(node) = all.first() else { return Ok(()) };
        let directory = lab.directory().join("compare");
        fs::create_dir_all(&directory).map_err(CompareError::io("making a directory"))?;
        for (name, text) in [("mqtt.py", MQTT), ("xmpp.py", XMPP)] {
            fs::write(directory.join(name), text).map_err(CompareError::io("writing a client"))?;
        }
        let certificates = Certificates::make(&directory, node.address)?;
        let users: Vec<String> = plan.devices.iter().map(|device| device.user.clone()).collect();
        for peer in &self.peers {
            let host = (node.name.as_str(), node.address);
            self.servers.push(start(*peer, lab, host, &users, &certificates, &self.logs)?);
        }
        (self.certificates, self.address) = (Some(certificates), node.address);
        Ok(())
    }

    /// Opens every client on a device.
    pub fn open(&mut self, lab: &Lab, device: &str, user: &str, zero_ns: u64) -> Result<(), RealError> {
        let run_now_ns = monotonic_ns().saturating_sub(zero_ns);
        self.lab_zero_ns = lab.now_ns()?.saturating_sub(run_now_ns);
        for peer in self.peers.clone() {
            let client = self.client(lab, peer, device, user, zero_ns).map_err(beside)?;
            self.clients.insert((peer, device.to_owned()), client);
        }
        Ok(())
    }

    fn client(&self, lab: &Lab, peer: Peer, device: &str, user: &str, zero_ns: u64) -> Result<Client, CompareError> {
        let directory = lab.directory().join("compare");
        let mut command = match peer {
            Peer::Tcp => {
                let program = std::env::current_exe().map_err(CompareError::io("finding this program"))?;
                let mut command = Command::new(program);
                command.arg("messenger");
                command
            }
            Peer::Mqtt | Peer::Xmpp => {
                let mut command = Command::new(&self.outside.python);
                command.arg(directory.join(format!("{peer}.py")));
                command
            }
        };
        let log_path = self.logs.join(format!("{device}-{peer}.log"));
        let log = OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.map_err(CompareError::io(format!("opening {}", log_path.display())))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut process = lab.spawn(device, command)?;
        let (input, output, _) = process.pipes();
        let mut input = input.ok_or_else(|| CompareError::Line(format!("{peer} on {device} takes no input")))?;
        let set_up = SetUp {
            device: device.to_owned(),
            user: user.to_owned(),
            server: SocketAddr::from((self.address, peer.port())),
            server_name: DOMAIN.to_owned(),
            roots: self.certificates.as_ref().map(|certificates| certificates.roots.clone()).unwrap_or_default(),
            zero_ns,
        };
        let first = serde_json::to_string(&set_up).map_err(|error| CompareError::Line(error.to_string()))?;
        let written = writeln!(input, "{first}").and_then(|()| input.flush());
        written.map_err(CompareError::io(format!("starting {peer} on {device}")))?;
        let (record, device) = (Arc::clone(&self.record), device.to_owned());
        let read = move || {
            let lines = output.into_iter().flat_map(|output| BufReader::new(output).lines().map_while(Result::ok));
            for line in lines {
                match serde_json::from_str::<Told>(&line) {
                    Ok(told) => {
                        let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
                        record.push((peer, device.clone(), told));
                    }
                    Err(error) => eprintln!("{peer} on {device} says what makes no sense: {error}: {line}"),
                }
            }
        };
        let thread = thread::Builder::new().name(format!("{peer} output"));
        thread.spawn(read).map_err(CompareError::io("starting a thread"))?;
        Ok(Client { _process: process, input })
    }

    /// A load writes: everybody does, one after the other, so that nobody's packet waits in the queue of a slow link behind
    /// those that were made in the same moment. When [`Self::say`] is to be called for that, by the run's clock.
    pub fn write(&mut self, now_ns: u64, load: &LoadPlan, bytes: u32) -> Vec<u64> {
        let Target::User(to) = &load.to else { return Vec::new() };
        let count = self.counts.entry(load.from.clone()).or_default();
        *count += 1;
        let order = Order::Send { to: to.clone(), text: text(&format!("{}/{count}", load.from), bytes) };
        let mut due = Vec::new();
        for (number, peer) in self.peers.iter().enumerate() {
            let at_ns = now_ns.saturating_add(behind_ns(number, self.peers.len(), load.every_ns));
            self.orders += 1;
            self.later.insert((at_ns, self.orders), (*peer, load.from.clone(), order.clone()));
            due.push(at_ns);
        }
        due
    }

    /// Tells clients what they are to be told by now.
    pub fn say(&mut self, now_ns: u64) -> Result<(), RealError> {
        while let Some(next) = self.later.first_entry().filter(|next| next.key().0 <= now_ns) {
            let (peer, device, order) = next.remove();
            self.order(&device, &order, |of| of == peer).map_err(beside)?;
        }
        Ok(())
    }

    /// A device's system tells of another network.
    pub fn network_changed(&mut self, device: &str, network: Option<&str>) -> Result<(), RealError> {
        self.order(device, &Order::Network(network.map(str::to_owned)), |_| true).map_err(beside)
    }

    /// Whether everything that was written by these clients has been shown.
    pub fn all_shown(&self) -> bool {
        let written: u64 = self.counts.values().sum();
        self.peers.iter().all(|peer| self.count(*peer, What::Shown) >= written)
    }

    /// The run's moment 0 by the clock of the links, in nanoseconds.
    pub fn lab_zero_ns(&self) -> u64 {
        self.lab_zero_ns
    }

    /// Notes how much went between each device and each server.
    pub fn note_bytes(&mut self, device: &str, by_port: &BTreeMap<u16, (u64, u64)>) {
        for (port, bytes) in by_port {
            self.bytes.insert((device.to_owned(), *port), *bytes);
        }
    }

    /// What a peer's clients told, with the device.
    pub fn told(&self, peer: Peer) -> Vec<(String, Told)> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.iter().filter(|(of, ..)| *of == peer).map(|(_, device, told)| (device.clone(), told.clone())).collect()
    }

    /// Bytes up and down of a peer, by device.
    pub fn bytes(&self, peer: Peer, devices: &[String]) -> BTreeMap<String, (u64, u64)> {
        self.bytes_of(&[peer.port()], devices)
    }

    /// The same of tern.
    pub fn bytes_of_tern(&self, devices: &[String]) -> BTreeMap<String, (u64, u64)> {
        self.bytes_of(&[CLIENT_PORT, DISPATCH_PORT], devices)
    }

    fn bytes_of(&self, ports: &[u16], devices: &[String]) -> BTreeMap<String, (u64, u64)> {
        let of = |device: &String| {
            let all = ports.iter().filter_map(|port| self.bytes.get(&(device.clone(), *port)));
            (device.clone(), all.fold((0, 0), |sum, bytes| (sum.0 + bytes.0, sum.1 + bytes.1)))
        };
        devices.iter().map(of).collect()
    }

    fn count(&self, peer: Peer, what: What) -> u64 {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        let count = record.iter().filter(|(of, _, told)| *of == peer && told.what == what).count();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    fn order(&mut self, device: &str, order: &Order, whose: impl Fn(Peer) -> bool) -> Result<(), CompareError> {
        let line = serde_json::to_string(order).map_err(|error| CompareError::Line(error.to_string()))?;
        for ((peer, _), client) in self.clients.iter_mut().filter(|((peer, of), _)| of == device && whose(*peer)) {
            let written = writeln!(client.input, "{line}").and_then(|()| client.input.flush());
            written.map_err(CompareError::io(format!("{peer} on {device} has ended; see its log")))?;
        }
        Ok(())
    }
}

/// As an error of the run that it is part of.
fn beside(error: CompareError) -> RealError {
    match error {
        CompareError::Real(error) => error,
        CompareError::Lab(error) => error.into(),
        other => RealError::Beside(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tern_netsim_scenario::plan::Size;

    use super::*;

    fn load(every_ns: u64) -> LoadPlan {
        LoadPlan {
            id: "load".into(),
            from: "phone".into(),
            to: Target::User("bob".into()),
            every_ns,
            poisson: true,
            size: Size::Fixed(100),
            from_ns: 0,
            until_ns: u64::MAX,
            count: None,
        }
    }

    #[test]
    fn everybody_is_told_the_same_one_after_the_other_before_tern_writes_again() {
        const MS: u64 = 1_000_000;
        let outside = Outside { python: PathBuf::new() };
        let mut company = Company::new(&Peer::ALL, &outside, Path::new("."));
        assert_eq!(company.write(5000 * MS, &load(3000 * MS), 100), [5400 * MS, 5800 * MS, 6200 * MS]);
        // Another load writes on the same link meanwhile.
        assert_eq!(company.write(5500 * MS, &load(1000 * MS), 100), [5750 * MS, 6000 * MS, 6250 * MS]);
        let mut told = Vec::new();
        while let Some(next) = company.later.first_entry() {
            let (peer, device, Order::Send { text, .. }) = next.remove() else { panic!("nothing but messages") };
            told.push((peer, format!("{device}: {}", super::super::told::name_of(&text))));
        }
        let names: Vec<_> = told.iter().map(|(peer, message)| (*peer, message.as_str())).collect();
        let (one, two) = ("phone: phone/1", "phone: phone/2");
        use Peer::{Mqtt, Tcp, Xmpp};
        assert_eq!(names, [(Tcp, one), (Tcp, two), (Mqtt, one), (Mqtt, two), (Xmpp, one), (Xmpp, two)]);
        assert!(!company.all_shown(), "what is still to be told was written");
    }
}
