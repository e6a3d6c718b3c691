//! Which nodes of other versions are linked to.
//!
//! Problem: nodes are replaced one after the other, so two versions of the node wire run beside each other, and a node that
//! was forgotten must not hold a new kind of frame for nonsense.
//!
//! Rule: each node says the highest version that it speaks and the lowest that it still links with. Two of them link if
//! what each speaks is not below what the other still takes, and use what the lower of their versions has. The lowest is the
//! operator's to raise once all nodes are new (`nodes.oldest_version`): what only a later version has may be written from
//! then on, for nobody is left, or let in, who would not know it. Within a version fields and frames that a node does not
//! know are left out, and kinds of entries that it does not know are stored, shipped and shown as such.

use super::NODE_VERSION;

/// The lowest version of the node wire that this program can still link with.
pub const OLDEST: u32 = 1;

/// What a node said of itself in its hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speaks {
    /// The highest version that it speaks.
    pub version: u32,
    /// The lowest that it links with; 0: that one only.
    pub oldest: u32,
}

impl Speaks {
    /// The version to use with it, where this node links with nobody below `oldest`. An error says what an operator is to
    /// change.
    pub fn with(self, oldest: u32) -> Result<u32, String> {
        let theirs_oldest = if self.oldest == 0 { self.version } else { self.oldest };
        if self.version < oldest {
            let why = match oldest > OLDEST {
                true => format!("nodes.oldest_version is {oldest} here"),
                false => format!("the oldest that this node still links with is {oldest}"),
            };
            return Err(format!(
                "it speaks version {} of the node wire, and {why}: start the newer program there",
                self.version
            ));
        }
        if theirs_oldest > NODE_VERSION {
            return Err(format!(
                "it links with nobody below version {theirs_oldest} of the node wire, and this node speaks \
                 {NODE_VERSION}: start the newer program here"
            ));
        }
        Ok(self.version.min(NODE_VERSION))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Entry;
    use crate::ids::{ConvId, Identity, InstallId, Origin, Place, UserId};
    use crate::wire::node_v1::{Beat, NodeFrame, Ship, node_frame::Body};
    use crate::wire::v1;
    use bytes::Bytes;
    use prost::Message;

    /// A field 99 that no message has.
    const UNKNOWN: [u8; 5] = [0x9a, 0x06, 0x02, b'h', b'i'];

    #[test]
    fn fields_and_frames_that_a_newer_node_or_client_says_are_left_out() {
        assert_eq!(NodeFrame::decode(&UNKNOWN[..]).unwrap().body, None, "a kind of frame");
        assert_eq!(v1::Frame::decode(&UNKNOWN[..]).unwrap(), v1::Frame::default());
        let beat = Beat { wall_ms: 7, ..Beat::default() };
        let longer = [&beat.encode_to_vec()[..], &UNKNOWN].concat();
        let mut frame = vec![0x32, u8::try_from(longer.len()).unwrap()]; // field 6, a message
        frame.extend(longer);
        frame.extend(UNKNOWN);
        assert_eq!(NodeFrame::decode(&frame[..]).unwrap().body, Some(Body::Beat(beat)));
    }

    #[test]
    fn entries_of_a_kind_that_is_not_known_are_shipped_and_stored_as_they_are() {
        let entry = Entry {
            kind: 63_999,
            wall_ms: 5,
            ..Entry::text(
                Place { hlc: 9, origin: Origin { region: 1, era: 5 }, seq: 1 },
                Identity { user: UserId::new("al").unwrap(), install: InstallId::new("p").unwrap(), n: 1 },
                Bytes::from_static(b"of a later version"),
            )
        };
        let stored = entry.to_bytes();
        let conversation = Bytes::copy_from_slice(&ConvId([9; 16]).0);
        let ship =
            Ship { conversation, origin: Some(entry.place.origin.into()), first_seq: 1, entries: vec![stored.clone()] };
        let frame = NodeFrame { body: Some(Body::Ship(ship)) }.encode_to_vec();
        let Some(Body::Ship(heard)) = NodeFrame::decode(&frame[..]).unwrap().body else { panic!("no Ship") };
        let heard = crate::wire::node::entries_from_wire(heard.entries).unwrap();
        assert!(*heard[0] == entry && heard[0].to_bytes() == stored);
    }

    #[test]
    fn versions_that_overlap_use_the_lower_one_and_others_are_told_which_program_to_replace() {
        let with = |version, oldest, own| Speaks { version, oldest }.with(own);
        assert_eq!(with(1, 0, 1), Ok(1), "from before there was a range");
        assert_eq!(with(1, 1, 1), Ok(1));
        assert_eq!(with(NODE_VERSION + 5, 1, 1), Ok(NODE_VERSION), "a newer one that still speaks ours");
        let newer = with(NODE_VERSION + 5, NODE_VERSION + 1, 1).unwrap_err();
        assert!(newer.contains("start the newer program here"), "{newer}");
        let newer = with(NODE_VERSION + 5, 0, 1).unwrap_err();
        assert!(newer.contains("start the newer program here"), "{newer}");
        let older = with(1, 1, 2).unwrap_err();
        assert!(older.contains("nodes.oldest_version is 2 here: start the newer program there"), "{older}");
        let older = with(0, 0, 1).unwrap_err();
        assert!(older.contains("still links with is 1: start the newer program there"), "{older}");
    }
}
