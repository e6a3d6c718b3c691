//! The data that is shipped with the binary: DB-IP Lite country, see `data/README.md`.
//!
//! An MMDB is mostly a search tree: pairs of 24-bit records, each the number of a further node or, from the
//! number of nodes upwards, a place in the data section. Nodes are numbered in the order of a walk, so most
//! records are "the next one": as a difference from the node's own number they compress to 1.0 MB instead
//! of 3.4. That is the whole format: a mark, the number of nodes, and the MMDB with such records folded.

use std::io::Read;

use ruzstd::decoding::StreamingDecoder;

/// The folded MMDB, compressed by zstd with a window of 1 MiB.
pub(super) const SHIPPED: &[u8] = include_bytes!("../../data/dbip-country-lite.mmdb.folded.zst");

/// The first bytes, once decompressed.
const MARK: &[u8] = b"tern folded mmdb 1\n";
/// Two records of 24 bits.
const NODE_BYTES: usize = 6;
/// Above this, decompressed data is not what is shipped: the file has 8.2 MB.
const MMDB_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Folds an MMDB of 24-bit records. Fails on other record sizes and where a tree is not numbered in the
/// order of a walk. `node_count` is as its metadata has it.
pub fn fold(mmdb: &[u8], node_count: u32, record_size: u16) -> Result<Vec<u8>, String> {
    if record_size != 24 {
        return Err(format!("records of {record_size} bits; only 24 can be folded"));
    }
    let mut folded = mmdb.to_vec();
    each_record(&mut folded, node_count, |node, record| {
        if record >= node_count {
            return Ok(record);
        }
        record.checked_sub(node).filter(|d| *d > 0).ok_or_else(|| format!("node {node} leads back to {record}"))
    })?;
    Ok([MARK, &node_count.to_be_bytes(), &folded].concat())
}

/// The reverse of [`fold`].
pub(super) fn unfold(folded: &[u8]) -> Result<Vec<u8>, String> {
    let rest = folded.strip_prefix(MARK).ok_or("it does not start with its mark")?;
    let (count, mmdb) = rest.split_first_chunk::<4>().ok_or("it ends within its head")?;
    let node_count = u32::from_be_bytes(*count);
    let mut mmdb = mmdb.to_vec();
    each_record(&mut mmdb, node_count, |node, record| Ok(if record < node_count { record + node } else { record }))?;
    Ok(mmdb)
}

fn each_record(
    mmdb: &mut [u8],
    node_count: u32,
    mut change: impl FnMut(u32, u32) -> Result<u32, String>,
) -> Result<(), String> {
    let nodes = usize::try_from(node_count).ok().and_then(|n| n.checked_mul(NODE_BYTES));
    let tree = nodes.and_then(|n| mmdb.get_mut(..n)).ok_or("its tree is larger than the file")?;
    for (node, pair) in (0..node_count).zip(tree.chunks_exact_mut(NODE_BYTES)) {
        for record in pair.chunks_exact_mut(3) {
            let value = u32::from_be_bytes([0, record[0], record[1], record[2]]);
            let [_, a, b, c] = change(node, value)?.to_be_bytes();
            record.copy_from_slice(&[a, b, c]);
        }
    }
    Ok(())
}

/// Decompresses and unfolds.
pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    let decoder = StreamingDecoder::new(packed).map_err(|e| e.to_string())?;
    let mut folded = Vec::new();
    decoder.take(MMDB_BYTES_MAX).read_to_end(&mut folded).map_err(|e| e.to_string())?;
    unfold(&folded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_is_undone_by_unfolding_and_keeps_what_follows_the_tree() {
        // Three nodes: 0 -> (1, leaf), 1 -> (leaf, 2), 2 -> (leaf, empty); then data.
        let records: [u32; 6] = [1, 20, 21, 2, 22, 3];
        let mut mmdb: Vec<u8> = records.iter().flat_map(|r| r.to_be_bytes()[1..].to_vec()).collect();
        mmdb.extend_from_slice(b"data");
        let folded = fold(&mmdb, 3, 24).unwrap();
        assert_ne!(&folded[MARK.len() + 4..], &mmdb[..]);
        assert_eq!(unfold(&folded).unwrap(), mmdb);
    }

    #[test]
    fn the_shipped_file_is_the_one_that_the_readme_names() {
        let hash = ring::digest::digest(&ring::digest::SHA256, &unpack(SHIPPED).unwrap());
        let hex: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let readme = include_str!("../../data/README.md");
        assert!(readme.contains(&hex), "data/README.md names another file than the one with {hex}");
    }

    #[test]
    fn what_can_not_be_folded_or_unfolded_is_refused() {
        assert!(fold(&[0; 6], 1, 28).unwrap_err().contains("28 bits"));
        assert!(fold(&[0; 12], 2, 24).unwrap_err().contains("leads back"));
        assert!(fold(&[9; 6], 2, 24).unwrap_err().contains("larger than the file"));
        assert!(unfold(b"tern").is_err());
        assert!(unfold(MARK).is_err());
        assert!(unfold(&[MARK, &[0xff; 4], b"x"].concat()).is_err());
        assert!(unpack(b"not zstd").is_err());
        assert!(unpack(&SHIPPED[..SHIPPED.len() / 2]).is_err());
    }
}
