//! A device with several ways into the network: hand-over and new addresses, as a machine.
//!
//! Problem: a phone that leaves the house goes from WiFi to its carrier. For some time nothing passes; then it
//! has another address, and packets for the old one find nobody. To the other side that looks like an outage
//! followed by a stranger.
//!
//! Rule: one interface is in use, or none during a gap. Packets go out on the one in use, under its address.
//! Packets for an address are received while its interface is in use and not in a gap; with an overlap
//! ("make before break"), the old one also receives for so long after the change. A hand-over within the same
//! address (from cell to cell) is one to the same interface.
//!
//! Why the machine holds no links: each interface names one, and who drives both lets the packets through.

use std::net::IpAddr;

use crate::limits::INTERFACES_MAX;

/// One way into the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// `wifi`, `cell`.
    pub name: String,
    /// The device's address there.
    pub address: IpAddr,
    /// The link behind it, by name.
    pub link: String,
}

/// A change from one interface to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandOver {
    /// How long nothing passes. Measured while driving: 40 ms in the median, seconds at times.
    pub gap_ns: u64,
    /// How long the old interface still receives, counted from the beginning of the hand-over.
    pub overlap_ns: u64,
}

/// Why a change is refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// There is none of this name.
    #[error("the device has no interface {name}; it has {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those it has.
        known: String,
    },
    /// Two have one name or address, or there are none, or too many.
    #[error("a device has one to 16 interfaces, each with a name and an address of its own")]
    Ambiguous,
}

/// The interfaces of a device.
#[derive(Clone, Debug)]
pub struct Interfaces {
    all: Vec<Interface>,
    /// The one in use, and from when on.
    used: Option<(usize, u64)>,
    /// The one before, and until when it receives.
    before: Option<(IpAddr, u64)>,
}

impl Interfaces {
    /// The first is in use.
    pub fn new(all: Vec<Interface>) -> Result<Self, InterfaceError> {
        let distinct = all
            .iter()
            .enumerate()
            .all(|(i, one)| all[..i].iter().all(|other| other.name != one.name && other.address != one.address));
        if all.is_empty() || all.len() > INTERFACES_MAX || !distinct {
            return Err(InterfaceError::Ambiguous);
        }
        Ok(Self { all, used: Some((0, 0)), before: None })
    }

    /// Hands over to another interface, or to the same one again.
    pub fn hand_over(&mut self, now_ns: u64, to: &str, how: HandOver) -> Result<(), InterfaceError> {
        let to = self.find(to)?;
        self.before = self.sending(now_ns).map(|old| (old.address, now_ns.saturating_add(how.overlap_ns)));
        self.used = Some((to, now_ns.saturating_add(how.gap_ns)));
        Ok(())
    }

    /// Switches all off: flight mode.
    pub fn off(&mut self) {
        (self.used, self.before) = (None, None);
    }

    /// An interface gets another address. Packets for the old one find nobody from now on.
    pub fn readdress(&mut self, name: &str, address: IpAddr) -> Result<(), InterfaceError> {
        let index = self.find(name)?;
        if self.all.iter().enumerate().any(|(other, one)| other != index && one.address == address) {
            return Err(InterfaceError::Ambiguous);
        }
        let old = std::mem::replace(&mut self.all[index].address, address);
        self.before = self.before.filter(|(before, _)| *before != old);
        Ok(())
    }

    /// What a packet goes out on now. `None`: a gap, or all off; it is lost.
    pub fn sending(&self, now_ns: u64) -> Option<&Interface> {
        self.all.get(self.sending_index(now_ns)?)
    }

    /// Its place in [`Interfaces::all`].
    pub fn sending_index(&self, now_ns: u64) -> Option<usize> {
        self.used.filter(|(_, from_ns)| now_ns >= *from_ns).map(|(index, _)| index)
    }

    /// Place in [`Interfaces::all`] of the one that is in use, or will be after a gap. `None`: all are off.
    pub fn chosen(&self) -> Option<usize> {
        self.used.map(|(index, _)| index)
    }

    /// Since when the one in use is, or from when on it will be.
    pub fn chosen_since_ns(&self) -> Option<u64> {
        self.used.map(|(_, from_ns)| from_ns)
    }

    /// Place in [`Interfaces::all`] of the one with this name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.all.iter().position(|one| one.name == name)
    }

    /// Whether a packet for this address is received now.
    pub fn receives(&self, now_ns: u64, address: IpAddr) -> bool {
        self.sending(now_ns).is_some_and(|used| used.address == address)
            || self.before.is_some_and(|(before, until_ns)| before == address && now_ns < until_ns)
    }

    /// When a gap or an overlap ends.
    pub fn next_ns(&self, now_ns: u64) -> Option<u64> {
        let ends = [self.used.map(|(_, from_ns)| from_ns), self.before.map(|(_, until_ns)| until_ns)];
        ends.into_iter().flatten().filter(|at_ns| *at_ns > now_ns).min()
    }

    /// All of them.
    pub fn all(&self) -> &[Interface] {
        &self.all
    }

    fn find(&self, name: &str) -> Result<usize, InterfaceError> {
        self.all.iter().position(|one| one.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.all.iter().map(|one| one.name.as_str()).collect();
            InterfaceError::Unknown { name: name.to_owned(), known: known.join(", ") }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn phone() -> Interfaces {
        let of = |name: &str, address| Interface {
            name: name.to_owned(),
            address: ip(address),
            link: format!("phone.{name}"),
        };
        Interfaces::new(vec![of("wifi", "192.168.1.5"), of("cell", "100.64.0.5")]).unwrap()
    }

    /// What the phone sends on, and which of its two addresses it receives at.
    fn state(phone: &Interfaces, ms: u64) -> (Option<&str>, bool, bool) {
        let now_ns = ms * MS;
        let at = |address| phone.receives(now_ns, ip(address));
        (phone.sending(now_ns).map(|one| one.name.as_str()), at("192.168.1.5"), at("100.64.0.5"))
    }

    #[test]
    fn during_a_hand_over_nothing_passes_and_the_old_address_finds_nobody() {
        let mut phone = phone();
        assert_eq!(state(&phone, 0), (Some("wifi"), true, false));
        phone.hand_over(100 * MS, "cell", HandOver { gap_ns: 40 * MS, overlap_ns: 0 }).unwrap();
        assert_eq!(state(&phone, 100), (None, false, false));
        assert_eq!(phone.next_ns(100 * MS), Some(140 * MS));
        assert_eq!(state(&phone, 139), (None, false, false));
        assert_eq!(state(&phone, 140), (Some("cell"), false, true));
        assert_eq!((phone.next_ns(140 * MS), phone.sending(140 * MS).unwrap().link.as_str()), (None, "phone.cell"));
        // From cell to cell: only a gap.
        phone.hand_over(200 * MS, "cell", HandOver { gap_ns: 5 * MS, overlap_ns: 0 }).unwrap();
        assert_eq!([state(&phone, 204), state(&phone, 205)], [(None, false, false), (Some("cell"), false, true)]);
    }

    #[test]
    fn with_an_overlap_the_old_interface_still_receives() {
        let mut phone = phone();
        phone.hand_over(0, "cell", HandOver { gap_ns: 0, overlap_ns: 50 * MS }).unwrap();
        assert_eq!(state(&phone, 49), (Some("cell"), true, true));
        assert_eq!(state(&phone, 50), (Some("cell"), false, true));
    }

    #[test]
    fn a_new_address_silences_the_old_one_and_flight_mode_everything() {
        let mut phone = phone();
        phone.readdress("wifi", ip("192.168.9.9")).unwrap();
        assert_eq!(state(&phone, 0), (Some("wifi"), false, false));
        assert!(phone.receives(0, ip("192.168.9.9")));
        phone.hand_over(0, "cell", HandOver { gap_ns: 0, overlap_ns: 50 * MS }).unwrap();
        phone.readdress("wifi", ip("192.168.1.5")).unwrap();
        assert!(!phone.receives(1, ip("192.168.9.9")));
        phone.off();
        assert_eq!((state(&phone, 1000), phone.next_ns(0)), ((None, false, false), None));
    }

    #[test]
    fn what_names_nothing_is_refused_and_says_what_there_is() {
        let mut phone = phone();
        let refused = phone.hand_over(0, "ethernet", HandOver::default()).unwrap_err();
        assert_eq!(refused.to_string(), "the device has no interface ethernet; it has wifi, cell");
        assert_eq!(phone.readdress("wifi", ip("100.64.0.5")), Err(InterfaceError::Ambiguous));
        assert!(Interfaces::new(vec![]).is_err());
        assert!(Interfaces::new([phone.all(), phone.all()].concat()).is_err());
        assert_eq!(state(&phone, 0), (Some("wifi"), true, false));
    }
}
