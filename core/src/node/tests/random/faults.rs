//! What happens to regions.

use super::*;
use crate::client::Failure;

impl Run {
    pub(super) fn up(&self) -> Vec<Region> {
        REGIONS.iter().map(|(r, _)| *r).filter(|r| self.world.cores[r].is_some()).collect()
    }

    /// Those that can be started.
    pub(super) fn down(&self) -> Vec<Region> {
        let down = REGIONS.iter().map(|(r, _)| *r).filter(|r| self.world.cores[r].is_none());
        down.filter(|r| !self.gone.contains(r)).collect()
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.rng.random_range(0..from.len())]) }
    }

    pub(super) fn kill(&mut self, region: Region, destroy: bool) {
        self.note(format!("kill {region}{}", if destroy { " and its disk" } else { "" }));
        self.world.kill(region);
        self.lose_connections(region);
        if destroy {
            self.lost = true;
            self.gone.insert(region);
        }
    }

    fn lose_connections(&mut self, region: Region) {
        for device in &mut self.devices {
            let now = self.world.now;
            let conns: Vec<ConnNo> = device.wires.iter().filter(|(_, w)| w.region == region).map(|(c, _)| *c).collect();
            for conn in conns {
                // Half of the clients hear nothing: their connection is silent.
                if self.rng.random_bool(0.5) {
                    device.wires.remove(&conn);
                    device.machine.ended(now, conn, &Failure::Network("reset".into()));
                } else if let Some(wire) = device.wires.get_mut(&conn) {
                    wire.broken = true;
                }
            }
        }
    }

    pub(super) fn start(&mut self, region: Region) {
        self.world.start(region);
        let era = self.world.core(region).node.origin().era;
        self.note(format!("start {region} in era {era}"));
        for (other, _) in REGIONS {
            if other != region && self.world.cores[&other].is_some() {
                self.world.link(region, other);
            }
        }
    }

    /// Regions that were stopped or crashed start at once: their stores are open, and they answer each other.
    pub(super) fn start_together(&mut self, regions: &[Region]) {
        self.world.opening = regions.iter().copied().collect();
        for region in regions {
            self.start(*region);
        }
        self.world.opening.clear();
    }

    /// In order: peers get what they are to get, clients and other regions go on meanwhile.
    fn stop(&mut self, region: Region) {
        self.note(format!("stop {region}"));
        self.world.core(region).node.drain([]);
        for _ in 0..50 {
            if self.world.core(region).node.is_settled() {
                break;
            }
            self.let_pass(Duration::from_millis(100));
            for _ in 0..20 {
                self.deliver(true);
            }
        }
        self.world.close(region);
        self.lose_connections(region);
    }

    pub(super) fn cut_or_heal(&mut self) {
        let up = self.up();
        if let [a, b, ..] = up[..] {
            let (a, b) = if self.rng.random_bool(0.5) { (a, b) } else { (up[up.len() - 1], a) };
            if a != b && self.world.up.contains(&pair(a, b)) {
                self.note(format!("cut {a} {b}"));
                self.world.unlink(a, b);
            } else if a != b {
                self.note(format!("heal {a} {b}"));
                self.world.link(a, b);
            }
        }
    }

    /// The disk of the frail region is set back.
    fn set_back(&mut self, disk: Disk) {
        if self.world.cores[&self.frail].is_some() {
            self.kill(self.frail, false);
        }
        self.lost = true;
        self.world.graveyard.insert(self.frail, disk);
    }

    /// Stops, crashes, losses and returns (R13). One region of three loses what it had synced: two would be more
    /// than is promised.
    pub(super) fn fault(&mut self) {
        let (up, down, frail) = (self.up(), self.down(), self.frail);
        let any_up = self.pick(&up);
        match self.rng.random_range(0..100) {
            0..14 if up.len() > 1 => self.stop(any_up.unwrap()),
            14..22 if up.len() > 1 => self.kill(any_up.unwrap(), false),
            22..30 if up.len() > 2 => {
                // Two at once, each in order or not.
                let both: Vec<Region> = up.iter().copied().filter(|r| Some(*r) != any_up).collect();
                for region in &both {
                    if self.rng.random_bool(0.8) { self.stop(*region) } else { self.kill(*region, false) }
                }
                if self.rng.random_bool(0.7) {
                    self.start_together(&both);
                }
            }
            30..38 if up.contains(&frail) => self.tail = Some(self.world.backup(frail)),
            38..44 if up.contains(&frail) => self.saved = Some(self.world.backup(frail)),
            44..50 if up != [frail] => {
                if let Some(disk) = self.tail.take() {
                    self.note(format!("{frail} loses the end of its journal"));
                    self.set_back(disk);
                }
            }
            50..58 if up != [frail] => {
                if let Some(disk) = self.saved.clone() {
                    self.note(format!("{frail} is restored from a backup"));
                    if self.world.cores[&frail].is_some() {
                        self.kill(frail, false);
                    }
                    self.lost = true;
                    self.world.restore(frail, &disk);
                    if self.rng.random_bool(0.6) {
                        self.start(frail);
                    }
                }
            }
            58..62 if up != [frail] => {
                self.note(format!("{frail} loses its disk and gets an empty one"));
                self.set_back(Disk::default());
            }
            62..90 => {
                if let Some(region) = self.pick(&down) {
                    self.start(region);
                }
            }
            _ => self.cut_or_heal(),
        }
    }
}
