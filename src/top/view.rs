//! One picture of what many nodes say.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use tern_core::ids::Region;

use crate::orders::desk::Progress;
use crate::status::Status;

/// What a node answered, or why it did not.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Who was asked.
    pub at: SocketAddr,
    /// What it said.
    pub said: Result<Status, String>,
    /// When, by this machine's clock.
    pub when: Duration,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct View {
    /// Ordered by number.
    pub regions: Vec<RegionRow>,
    /// Ordered by region and name.
    pub nodes: Vec<NodeRow>,
    /// Ordered by region.
    pub links: Vec<LinkRow>,
    /// Of the first node that knows any.
    pub orders: Vec<Progress>,
    /// Addresses that did not answer and of which nobody says whose they are.
    pub unanswered: Vec<String>,
}

/// A region.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RegionRow {
    /// Its number.
    pub region: Region,
    /// Its name.
    pub name: String,
    /// Nodes that answer, and that are known.
    pub nodes: (usize, usize),
    /// Clients of all edges that are known.
    pub clients: u64,
    /// Messages that its core nodes sequence a second; none: no core node answers.
    pub messages_per_second: Option<f64>,
    /// An operator has told clients to leave it.
    pub cordoned: bool,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeRow {
    /// Number of its region.
    pub region: Region,
    /// Its name.
    pub node: String,
    /// What it is.
    pub role: String,
    /// Whether it answers.
    pub answers: bool,
    /// What it says of itself, or others of it.
    pub state: String,
    /// Clients of its edge, if known.
    pub clients: Option<u32>,
    /// As many as it takes.
    pub capacity: Option<u32>,
    /// Of its processors, 0-1000.
    pub cpu_permille: Option<u32>,
    /// Messages that its core sequences a second.
    pub messages_per_second: Option<f64>,
    /// Shares of its region that it has, where several core nodes share it.
    pub shares: Option<u32>,
}

/// A link, as one end sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinkRow {
    /// Number of the region that says so.
    pub region: Region,
    /// Its name.
    pub from: String,
    /// The other region's.
    pub to: String,
    /// Whether it is up.
    pub connected: bool,
    /// Entries that the other region has not acked.
    pub unacked: u64,
    /// There may be more.
    pub or_more: bool,
    /// Since the other was heard.
    pub silence_ms: u64,
}

impl View {
    /// Of what nodes say now; rates by what they said `before`.
    pub fn of(now: &[Answer], before: &[Answer]) -> Self {
        let said: Vec<(&Answer, &Status)> =
            now.iter().filter_map(|answer| Some((answer, answer.said.as_ref().ok()?))).collect();
        let mut names: BTreeMap<Region, String> = BTreeMap::new();
        let mut nodes: BTreeMap<(Region, String, bool), NodeRow> = BTreeMap::new();
        let mut owners: BTreeMap<SocketAddr, (Region, String, bool)> = BTreeMap::new();
        for (answer, status) in &said {
            names.insert(status.region, status.region_name.clone());
            names.extend(status.links.iter().map(|link| (link.region, link.name.clone())));
            names.extend(status.edges.iter().map(|edge| (edge.region, edge.region_name.clone())));
            let key = (status.region, status.node.clone(), status.role == "ipconf");
            owners.insert(answer.at, key.clone());
            nodes.insert(key, row(answer, status, before));
        }
        let unheard = |at: SocketAddr| now.iter().find(|answer| answer.at == at)?.said.as_ref().err();
        for (_, status) in &said {
            for member in &status.members {
                let key = (member.region, member.name.clone(), member.role == "ipconf");
                owners.entry(member.at).or_insert_with(|| key.clone());
                nodes.entry(key).or_insert_with(|| NodeRow {
                    region: member.region,
                    node: member.name.clone(),
                    role: member.role.clone(),
                    answers: false,
                    state: match unheard(member.at) {
                        Some(why) => format!("{} by gossip, does not answer at {}: {why}", member.state, member.at),
                        None => format!("{} by gossip, not asked", member.state),
                    },
                    clients: None,
                    capacity: None,
                    cpu_permille: None,
                    messages_per_second: None,
                    shares: None,
                });
            }
        }
        // What is seen of edges, the newest word on each.
        let mut edges: BTreeMap<(Region, &str), &crate::status::EdgeStatus> = BTreeMap::new();
        for edge in said.iter().flat_map(|(_, status)| &status.edges) {
            let known = edges.entry((edge.region, &edge.edge)).or_insert(edge);
            if edge.age_ms < known.age_ms {
                *known = edge;
            }
        }
        for ((region, name), edge) in edges {
            let row = nodes.entry((region, name.to_owned(), false)).or_insert_with(|| NodeRow {
                region,
                node: name.to_owned(),
                role: "edge".to_owned(),
                answers: false,
                state: format!("{} at dispatch, not asked", edge.standing),
                clients: None,
                capacity: None,
                cpu_permille: None,
                messages_per_second: None,
                shares: None,
            });
            row.clients = row.clients.or(Some(edge.clients));
            row.capacity = Some(edge.capacity);
            row.cpu_permille = Some(edge.cpu_permille);
            if row.answers && row.state == "ready" && edge.standing != "listed" {
                row.state = format!("ready, {}", edge.standing);
            }
        }
        for (region, shares) in said.iter().filter_map(|(_, status)| Some((status.region, status.shares.as_ref()?))) {
            for (name, count) in shares {
                if let Some(row) = nodes.get_mut(&(region, name.clone(), false)) {
                    row.shares = Some(*count);
                }
            }
        }
        let nodes: Vec<NodeRow> = nodes.into_values().collect();
        let orders = said.iter().map(|(_, status)| &status.orders).find(|orders| !orders.is_empty());
        let orders: Vec<Progress> = orders.cloned().unwrap_or_default();
        let links = said.iter().flat_map(|(_, status)| {
            status.links.iter().map(|link| LinkRow {
                region: status.region,
                from: status.region_name.clone(),
                to: link.name.clone(),
                connected: link.connected,
                unacked: link.unacked,
                or_more: link.or_more,
                silence_ms: link.silence_ms,
            })
        });
        let mut links: Vec<LinkRow> = links.collect();
        links.sort_by(|a, b| (a.region, &a.to).cmp(&(b.region, &b.to)));
        let unanswered = now.iter().filter(|answer| !owners.contains_key(&answer.at));
        Self {
            regions: names.into_iter().map(|(region, name)| region_row(region, name, &nodes, &orders)).collect(),
            unanswered: unanswered
                .filter_map(|answer| Some(format!("{}: {}", answer.at, answer.said.as_ref().err()?)))
                .collect(),
            nodes,
            links,
            orders,
        }
    }
}

fn row(answer: &Answer, status: &Status, before: &[Answer]) -> NodeRow {
    let earlier = before.iter().find_map(|earlier| {
        let said = earlier.said.as_ref().ok()?;
        (said.node == status.node && said.region == status.region && said.role == status.role)
            .then_some((earlier, said))
    });
    let rate = earlier.and_then(|(earlier, said)| {
        let seconds = answer.when.checked_sub(earlier.when)?.as_secs_f64();
        // Fewer than before: it was started anew meanwhile.
        let more = status.messages?.checked_sub(said.messages?)?;
        (seconds > 0.0).then(|| more as f64 / seconds)
    });
    let notes: String = status.notes.iter().map(|note| format!("; {note}")).collect();
    NodeRow {
        region: status.region,
        node: status.node.clone(),
        role: status.role.clone(),
        answers: true,
        state: format!("{}{notes}", status.state),
        clients: status.clients,
        capacity: None,
        cpu_permille: None,
        messages_per_second: rate,
        shares: None,
    }
}

fn region_row(region: Region, name: String, nodes: &[NodeRow], orders: &[Progress]) -> RegionRow {
    let here = || nodes.iter().filter(|node| node.region == region && node.role != "ipconf");
    let rates: Vec<f64> = here().filter_map(|node| node.messages_per_second).collect();
    RegionRow {
        region,
        name,
        nodes: (here().filter(|node| node.answers).count(), here().count()),
        clients: here().filter_map(|node| node.clients).map(u64::from).sum(),
        messages_per_second: (!rates.is_empty()).then(|| rates.iter().sum()),
        cordoned: orders.iter().any(|order| order.leave && order.node.is_none() && order.region == region),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{EdgeStatus, LinkStatus, MemberStatus};

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn member(name: &str, role: &str, port: u16) -> MemberStatus {
        let (name, role, state) = (name.to_owned(), role.to_owned(), "alive".to_owned());
        MemberStatus { region: 1, name, role, state, at: at(port) }
    }

    fn edge(region: u8, name: &str, edge: &str, clients: u32, age_ms: u64) -> EdgeStatus {
        let standing = if clients == 0 { "region_cordoned" } else { "listed" };
        let (region_name, edge, standing) = (name.to_owned(), edge.to_owned(), standing.to_owned());
        EdgeStatus { region, region_name, edge, clients, capacity: 100, cpu_permille: 5, standing, age_ms }
    }

    fn eu(messages: u64) -> Status {
        Status {
            node: "eu-e1".to_owned(),
            role: "region".to_owned(),
            region: 1,
            region_name: "eu".to_owned(),
            state: "ready".to_owned(),
            clients: Some(3),
            messages: Some(messages),
            links: vec![LinkStatus {
                region: 2,
                name: "us".to_owned(),
                at: "127.0.0.1:7422".to_owned(),
                connected: false,
                unacked: 17,
                or_more: false,
                silence_ms: 9_000,
            }],
            shares: Some(BTreeMap::from([("eu-e1".to_owned(), 200), ("eu-e2".to_owned(), 56)])),
            members: vec![
                member("eu-e1", "region", 7413),
                member("eu-e2", "region", 7415),
                member("d1", "ipconf", 7403),
            ],
            edges: vec![edge(1, "eu", "eu-e2", 4, 900), edge(2, "us", "us-e1", 0, 100)],
            ..Status::default()
        }
    }

    fn said(port: u16, status: Status, ms: u64) -> Answer {
        Answer { at: at(port), said: Ok(status), when: Duration::from_millis(ms) }
    }

    fn silent(port: u16) -> Answer {
        Answer { at: at(port), said: Err("refused".to_owned()), when: Duration::ZERO }
    }

    #[test]
    fn nodes_that_do_not_answer_are_shown_by_what_others_say_and_rates_are_differences() {
        let before = [said(7413, eu(100), 1_000)];
        let now = [said(7413, eu(350), 3_000), silent(7415), silent(7403), silent(7423)];
        let view = View::of(&now, &before);
        let node = |name: &str| view.nodes.iter().find(|n| n.node == name).unwrap();
        assert_eq!(node("eu-e1").messages_per_second, Some(125.0));
        assert_eq!((node("eu-e1").shares, node("eu-e2").shares), (Some(200), Some(56)));
        assert!(
            !node("eu-e2").answers
                && node("eu-e2").state.contains("alive by gossip, does not answer at 127.0.0.1:7415")
        );
        assert_eq!(node("eu-e2").clients, Some(4));
        assert!(node("us-e1").state.contains("region_cordoned at dispatch"));
        assert_eq!(node("d1").role, "ipconf");
        assert_eq!(view.regions[0].nodes, (1, 2));
        assert_eq!((view.regions[0].clients, view.regions[0].messages_per_second), (7, Some(125.0)));
        assert_eq!((view.regions[1].name.as_str(), view.regions[1].messages_per_second), ("us", None));
        assert_eq!((view.links[0].to.as_str(), view.links[0].unacked), ("us", 17));
        assert_eq!(view.unanswered, ["127.0.0.1:7423: refused"]);
        // Started anew, or never seen before: no rate.
        for before in [&[said(7413, eu(400), 1_000)][..], &[]] {
            assert_eq!(
                View::of(&now, before).nodes.iter().find(|n| n.node == "eu-e1").unwrap().messages_per_second,
                None
            );
        }
    }
}
