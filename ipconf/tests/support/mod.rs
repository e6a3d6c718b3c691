//! Makes small MMDB files (MaxMind DB File Format 2.0) for tests.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation)]

pub mod bed;

use std::net::IpAddr;
use std::path::PathBuf;

pub enum Value {
    Text(&'static str),
    Double(f64),
    Short(u16),
    Uint(u32),
    Long(u64),
    Map(Vec<(&'static str, Value)>),
    Array(Vec<Value>),
}

impl Value {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => {
                control(2, text.len(), out);
                out.extend_from_slice(text.as_bytes());
            }
            Self::Double(value) => {
                control(3, 8, out);
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::Short(value) => {
                control(5, 2, out);
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::Long(value) => {
                control(9, 8, out);
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::Uint(value) => {
                control(6, 4, out);
                out.extend_from_slice(&value.to_be_bytes());
            }
            Self::Map(fields) => {
                control(7, fields.len(), out);
                for (key, value) in fields {
                    Self::Text(key).write(out);
                    value.write(out);
                }
            }
            Self::Array(values) => {
                control(11, values.len(), out);
                values.iter().for_each(|v| v.write(out));
            }
        }
    }
}

fn control(kind: u8, size: usize, out: &mut Vec<u8>) {
    assert!(size < 29);
    let (first, extended) = if kind < 8 { (kind, None) } else { (0, Some(kind - 7)) };
    out.push(first << 5 | size as u8);
    out.extend(extended);
}

/// A file of one record per block of addresses; blocks must not overlap.
pub fn mmdb(ip_version: u16, kind: &'static str, blocks: &[(&str, u32, Value)]) -> Vec<u8> {
    mmdb_built(1_780_000_000, ip_version, kind, blocks)
}

/// The same, built when it is said.
pub fn mmdb_built(epoch: u64, ip_version: u16, kind: &'static str, blocks: &[(&str, u32, Value)]) -> Vec<u8> {
    const EMPTY: u32 = u32::MAX;
    const LEAF: u32 = 1 << 31;
    let mut nodes = vec![[EMPTY; 2]];
    let mut data = Vec::new();
    for (address, length, value) in blocks {
        let (bits, length) = match (address.parse().unwrap(), ip_version) {
            (IpAddr::V4(a), 4) => (u128::from(u32::from(a)) << 96, *length),
            (IpAddr::V4(a), _) => (u128::from(u32::from(a)), length + 96),
            (IpAddr::V6(a), _) => (u128::from(a), *length),
        };
        let mut node = 0;
        for depth in 0..length {
            let side = (bits >> (127 - depth) & 1) as usize;
            if depth + 1 == length {
                nodes[node][side] = LEAF | data.len() as u32;
            } else {
                if nodes[node][side] == EMPTY {
                    nodes.push([EMPTY; 2]);
                    nodes[node][side] = nodes.len() as u32 - 1;
                }
                node = nodes[node][side] as usize;
            }
        }
        value.write(&mut data);
    }
    let count = nodes.len() as u32;
    let mut file = Vec::new();
    for record in nodes.into_iter().flatten() {
        let record = match record {
            EMPTY => count,
            leaf if leaf & LEAF != 0 => count + 16 + (leaf & !LEAF),
            node => node,
        };
        file.extend_from_slice(&record.to_be_bytes()[1..]);
    }
    file.extend_from_slice(&[0; 16]);
    file.extend_from_slice(&data);
    file.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
    Value::Map(vec![
        ("binary_format_major_version", Value::Short(2)),
        ("binary_format_minor_version", Value::Short(0)),
        ("build_epoch", Value::Long(epoch)),
        ("database_type", Value::Text(kind)),
        ("description", Value::Map(vec![("en", Value::Text("made by a test"))])),
        ("ip_version", Value::Short(ip_version)),
        ("languages", Value::Array(vec![])),
        ("node_count", Value::Uint(count)),
        ("record_size", Value::Short(24)),
    ])
    .write(&mut file);
    file
}

/// A file on disk, gone with the guard.
pub fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("places.mmdb");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}
