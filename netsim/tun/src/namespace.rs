//! One host in the kernel: a network namespace with its devices.
//!
//! The namespace has no name, on purpose. A named one is a mount below `/run/netns`, and stays there when the run is
//! killed; this one ends with its last open file and process, so there is nothing to clean up after a SIGKILL. Its
//! devices are not persistent, and end with the router that has them open.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use crate::error::LabError;
use crate::kernel::{DEVICE_NAME_BYTES, new_device, new_network_namespace};
use crate::limits::{DEVICE_MTU, DEVICE_QUEUE_PACKETS};
use crate::netlink::{DeviceIndex, Netlink};

/// A device to be.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// `cell`, `eth0`. Cut where the kernel has no room for it.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// A TUN device; what is read from it is what its host sends.
#[derive(Debug)]
pub struct Device {
    /// Its packets. Does not block.
    pub file: File,
    /// Its number.
    pub index: DeviceIndex,
}

/// A host.
#[derive(Debug)]
pub struct Namespace {
    /// The namespace.
    pub net: Arc<OwnedFd>,
    /// For changes in it.
    pub netlink: Netlink,
    /// In the order in which they were asked for; the first one has the default route.
    pub devices: Vec<Device>,
}

impl Namespace {
    /// Makes one. The work is done on a thread that ends with it, since a thread keeps the namespace it has entered.
    pub fn build(devices: &[DeviceSpec]) -> Result<Self, LabError> {
        let devices = devices.to_vec();
        let built = thread::Builder::new().name("namespace".to_owned()).spawn(move || Self::build_here(&devices));
        let built = built.map_err(LabError::io("starting a thread"))?.join();
        built.unwrap_or(Err(LabError::Ended))
    }

    fn build_here(specs: &[DeviceSpec]) -> Result<Self, LabError> {
        let net = Arc::new(new_network_namespace()?);
        let netlink = Netlink::open()?;
        // What IPv6 says by itself (neighbours, routers) would take packet numbers from the scenario's packets. And a
        // packet may come in on an interface that is not the one that answers go out on: during a hand-over it does.
        for (path, value) in [
            ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
            ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
            ("/proc/sys/net/ipv4/conf/default/rp_filter", "0"),
        ] {
            // A kernel without IPv6 has no such file, which is as good.
            if std::fs::exists(path).unwrap_or(false) {
                std::fs::write(path, value).map_err(LabError::io("setting a kernel parameter"))?;
            }
        }
        netlink.up(DeviceIndex::LOOPBACK, None, None)?;
        let mut devices = Vec::with_capacity(specs.len());
        for spec in specs {
            let name = device_name(&spec.name);
            let file = new_device(&name)?;
            let index = DeviceIndex::find(&netlink, &name)?;
            netlink.up(index, Some(DEVICE_MTU), Some(DEVICE_QUEUE_PACKETS))?;
            netlink.add_address(index, spec.address)?;
            if devices.is_empty() {
                netlink.set_default_route(index, spec.address)?;
            }
            devices.push(Device { file, index });
        }
        Ok(Self { net, netlink, devices })
    }
}

/// A name that the kernel takes.
fn device_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(DEVICE_NAME_BYTES).collect()
}

/// Packets that the devices of a namespace dropped before the router could read them. To be called on a thread that
/// is in it.
pub(crate) fn dropped_before_read() -> Result<u64, LabError> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").map_err(LabError::io("reading counters"))?;
    Ok(dropped_in(&table))
}

/// Sum of the column for drops while sending, over all devices but the loopback.
fn dropped_in(table: &str) -> u64 {
    let of = |line: &str| {
        let (name, counts) = line.split_once(':')?;
        let count = counts.split_whitespace().nth(11)?.parse().ok()?;
        (name.trim() != "lo").then_some(count)
    };
    table.lines().filter_map(of).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_read_from_the_column_for_sending() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
            \x20   lo:     100       1    0    9    0     0          0         0      100       1    0    8    0     0       0          0\n\
            \x20 cell:     100       1    0    7    0     0          0         0      100       1    0    3    0     0       0          0\n\
            \x20 wifi:     100       1    0    7    0     0          0         0      100       1    0    2    0     0       0          0\n";
        assert_eq!(dropped_in(table), 5);
        assert_eq!(dropped_in(""), 0);
    }

    #[test]
    fn device_names_are_cut_to_what_the_kernel_takes() {
        assert_eq!(device_name("cell"), "cell");
        assert_eq!(device_name("a very long/name of it"), "a-very-long-nam");
    }
}
