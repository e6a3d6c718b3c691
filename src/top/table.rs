//! A view as text, in columns.

use std::fmt::Write;

use super::view::View;
use crate::orders::desk::Progress;

/// The whole view, with a line at its end.
pub fn show(view: &View) -> String {
    let mut out = String::new();
    let rate = |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
    let number = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let regions = view.regions.iter().map(|region| {
        [
            format!("{} ({})", region.name, region.region),
            format!("{}/{}", region.nodes.0, region.nodes.1),
            region.clients.to_string(),
            rate(region.messages_per_second),
            if region.cordoned { "cordoned".to_owned() } else { String::new() },
        ]
    });
    columns(&mut out, ["REGION", "NODES", "CLIENTS", "MSG/S", ""], regions.collect());
    let name = |region| view.regions.iter().find(|r| r.region == region).map_or("?", |r| r.name.as_str());
    let nodes = view.nodes.iter().map(|node| {
        [
            node.node.clone(),
            name(node.region).to_owned(),
            node.role.clone(),
            number(node.clients),
            node.cpu_permille.map_or_else(|| "-".to_owned(), |cpu| format!("{} %", cpu / 10)),
            rate(node.messages_per_second),
            number(node.shares),
            if node.answers { node.state.clone() } else { format!("! {}", node.state) },
        ]
    });
    columns(&mut out, ["NODE", "REGION", "ROLE", "CLIENTS", "CPU", "MSG/S", "SHARES", "STATE"], nodes.collect());
    let links = view.links.iter().map(|link| {
        [
            format!("{} -> {}", link.from, link.to),
            if link.connected { "up" } else { "DOWN" }.to_owned(),
            format!("{}{}", link.unacked, if link.or_more { "+" } else { "" }),
            format!("{:.1} s", link.silence_ms as f64 / 1000.0),
        ]
    });
    columns(&mut out, ["LINK", "", "UNACKED", "SILENCE"], links.collect());
    let orders = view.orders.iter().filter(|order| order.leave).map(|order| {
        [
            target(order),
            order.clients.to_string(),
            number(order.shares),
            if order.done { "done" } else { "leaving" }.to_owned(),
        ]
    });
    columns(&mut out, ["LEFT BY CLIENTS", "CLIENTS", "SHARES", ""], orders.collect());
    for address in &view.unanswered {
        let _infallible = writeln!(out, "! {address}");
    }
    out
}

fn target(order: &Progress) -> String {
    let region = order.region_name.clone().unwrap_or_else(|| order.region.to_string());
    order.node.as_ref().map_or_else(|| format!("region {region}"), |node| format!("{node} of {region}"))
}

/// Rows below their headings, each column as wide as its widest; nothing where there are no rows.
fn columns<const N: usize>(out: &mut String, headings: [&str; N], rows: Vec<[String; N]>) {
    if rows.is_empty() {
        return;
    }
    let headings = headings.map(str::to_owned);
    let all = || std::iter::once(&headings).chain(&rows);
    let widths: Vec<usize> = (0..N).map(|i| all().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    for row in all() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _infallible = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::view::{LinkRow, RegionRow};

    #[test]
    fn columns_are_as_wide_as_they_must_be_and_empty_tables_are_left_out() {
        let view = View {
            regions: vec![RegionRow {
                region: 1,
                name: "eu".to_owned(),
                nodes: (1, 2),
                clients: 123_456_789,
                messages_per_second: None,
                cordoned: true,
            }],
            links: vec![LinkRow {
                region: 1,
                from: "eu".to_owned(),
                to: "us".to_owned(),
                connected: false,
                unacked: 5,
                or_more: true,
                silence_ms: 1_250,
            }],
            ..View::default()
        };
        let expected = "REGION  NODES  CLIENTS    MSG/S\n\
                        eu (1)  1/2    123456789  -      cordoned\n\n\
                        LINK            UNACKED  SILENCE\n\
                        eu -> us  DOWN  5+       1.2 s\n\n";
        assert_eq!(show(&view), expected);
    }
}
