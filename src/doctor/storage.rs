//! The data directory, its disk, the store, and GeoIP data.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, Mode, OFlags, access, open, statfs, statvfs};
use tern_ipconf::Geo;
use tern_replication::store::OpenError;
use tern_replication::store::embedded::check_files;

use super::{Finding, Scene};
use crate::config::database::StoreKind;
use crate::config::scope::Role;
use crate::policies;

/// Writes that the disk's speed is measured by, each of this size and forced.
const FORCED_WRITES: usize = 20;
const FORCED_BYTES: usize = 4096;
/// A message is acked after one forced write; above this the sender feels it.
const SLOW_FORCE: Duration = Duration::from_millis(20);
/// Above this a region is hardly usable.
const VERY_SLOW_FORCE: Duration = Duration::from_millis(200);
/// Free space below this many reserves is soon used up.
const RESERVES_WANTED: u64 = 4;
/// What a new store takes at once besides its reserve.
const NEW_STORE_BYTES: u64 = 64 * MIB;
/// Address blocks move between countries; after so many days a few in a hundred are wrong.
const GEOIP_DAYS: u64 = 90;

const MIB: u64 = 1024 * 1024;
const DAY_SECONDS: u64 = 86_400;

pub(super) fn check(scene: &Scene) -> Vec<Finding> {
    let mut findings = Vec::new();
    if scene.role == Role::Region && scene.settings.store_kind == StoreKind::Embedded {
        findings.extend(directory(scene));
        findings.push(store(scene));
    }
    if scene.role != Role::Edge {
        findings.push(geoip(scene));
        findings.extend(placement(scene));
    }
    findings
}

/// The directory itself, or the nearest one above it that exists.
fn existing(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn directory(scene: &Scene) -> Vec<Finding> {
    let check = "data directory";
    let data = &scene.settings.data;
    let dir = existing(data);
    let shown = dir.display();
    if data.exists() && !data.is_dir() {
        return vec![Finding::failed(check, format!("{} is no directory", data.display()), "set data to another one")];
    }
    if let Err(error) = access(&dir, Access::WRITE_OK | Access::READ_OK | Access::EXEC_OK) {
        let todo = "run as the user that owns it, or `chown` it; or set data to another one";
        return vec![Finding::failed(check, format!("{shown} can't be read and written: {error}"), todo)];
    }
    let mut findings = vec![match data.is_dir() {
        true => Finding::ok(check, format!("{shown} can be written")),
        false => Finding::ok(check, format!("{} will be made in {shown}", data.display())),
    }];
    findings.extend(kind_of_disk(&dir));
    findings.push(free_space(scene, &dir));
    findings.push(forced_writes(&dir));
    findings
}

/// File systems that lose data or can't lock.
fn kind_of_disk(dir: &Path) -> Option<Finding> {
    let found = statfs(dir).ok()?;
    let (name, why) = match found.f_type {
        0x0102_1994 => ("tmpfs", "all is lost when the machine stops"),
        0x6969 => ("NFS", "its locks and forced writes can't be relied on"),
        0x517b | 0xfe53_4d42 => ("SMB", "its locks and forced writes can't be relied on"),
        _ => return None,
    };
    let what = format!("{} is on {name}: {why}", dir.display());
    Some(Finding::warning("data directory", what, "set data to a directory on a local disk"))
}

fn free_space(scene: &Scene, dir: &Path) -> Finding {
    let check = "disk space";
    let free = match statvfs(dir) {
        Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
        Err(error) => return Finding::warning(check, format!("unknown: {error}"), format!("`df {}`", dir.display())),
    };
    let reserve = scene.settings.store_disk_reserve.0;
    let new = if scene.settings.data.join("store/STORE").exists() { 0 } else { NEW_STORE_BYTES };
    let what = format!("{} MiB free, store.disk_reserve is {} MiB", free / MIB, reserve / MIB);
    if free < reserve.saturating_add(new) {
        let todo = "free some, or use another disk: below the reserve no message is taken (store_full)";
        Finding::failed(check, what, todo)
    } else if free < reserve.saturating_mul(RESERVES_WANTED) {
        Finding::warning(check, what, "make room before it is below the reserve: then no message is taken")
    } else {
        Finding::ok(check, what)
    }
}

/// How long a forced write takes, in a file without a name.
fn forced_writes(dir: &Path) -> Finding {
    let check = "disk speed";
    let measured = measure(dir);
    let (median, worst) = match measured {
        Ok(measured) => measured,
        Err(error) => {
            let what = format!("not measured: {} takes no file without a name ({error})", dir.display());
            return Finding::warning(check, what, "look at the latency of fdatasync with `ioping -S` or `fio`");
        }
    };
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let what = format!("a forced write takes {:.1} ms, at worst {:.1} ms of {FORCED_WRITES}", ms(median), ms(worst));
    let todo = "use a disk that forces writes faster (NVMe, or a controller with a battery): each ack waits for one";
    if median >= VERY_SLOW_FORCE {
        Finding::failed(check, what, todo)
    } else if median >= SLOW_FORCE {
        Finding::warning(check, what, todo)
    } else {
        Finding::ok(check, what)
    }
}

#[expect(clippy::disallowed_methods, reason = "it is the machine's own time that is measured")]
fn measure(dir: &Path) -> std::io::Result<(Duration, Duration)> {
    let file = open(dir, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(file);
    let mut took = Vec::new();
    for _ in 0..FORCED_WRITES {
        let before = Instant::now();
        file.write_all(&[7; FORCED_BYTES])?;
        file.sync_data()?;
        took.push(before.elapsed());
    }
    took.sort();
    Ok((took[FORCED_WRITES / 2], took[FORCED_WRITES - 1]))
}

/// What the store's marker says, and whether the files are whole that its database is found by. Whether what it holds
/// is whole needs the store itself, closed: that is `tern store check`.
fn store(scene: &Scene) -> Finding {
    let (check, dir) = ("store", scene.settings.data.join("store"));
    let marker = dir.join("STORE");
    let text = match fs::read_to_string(&marker) {
        Ok(text) => text,
        Err(_) if !dir.exists() => {
            let todo = "run `tern region --init` once; if there should be one, mount its disk first";
            return if scene.settings.region_init {
                Finding::ok(check, format!("none yet; {} will be made", dir.display()))
            } else {
                Finding::warning(check, format!("there is none in {}", dir.display()), todo)
            };
        }
        Err(error) => {
            let todo = "restore the whole directory from a backup, or make sure that this user may read it";
            return Finding::failed(check, format!("{} can't be read: {error}", marker.display()), todo);
        }
    };
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<u32>().ok())
    };
    let (Some("tern store"), Some(format), Some(region)) = (text.lines().next(), field("format"), field("region"))
    else {
        let what = format!("{} does not say whose store this is", marker.display());
        return Finding::failed(check, what, "restore the whole directory from a backup");
    };
    let own = scene.settings.region_id.map(u32::from);
    if own != Some(region) {
        let what = format!("{} is region {region}'s", dir.display());
        return Finding::failed(check, what, "give each region a directory of its own: correct data or region.id");
    }
    match holder(&dir) {
        Some(pid) if scene.running => {
            Finding::ok(check, format!("format {format}, region {region}, in use by the running node ({pid})"))
        }
        Some(pid) => Finding::failed(
            check,
            format!("{} is in use by process {pid}", dir.display()),
            "stop that process, or set data to another directory",
        ),
        None => match check_files(&dir) {
            Ok(()) => {
                Finding::ok(check, format!("format {format}, region {region}, not in use; `tern store check` reads it"))
            }
            Err(OpenError::Damaged { path, what }) => Finding::failed(
                check,
                format!("{} is damaged ({what})", path.display()),
                "restore the newest backup into a new directory with `tern store restore`, or move the store away and \
                 start with --init: the other regions send what they hold",
            ),
            Err(error) => {
                Finding::failed(check, error.to_string(), "make sure that only the store is in its directory")
            }
        },
    }
}

/// Who holds the store's lock.
fn holder(dir: &Path) -> Option<String> {
    let lock = File::options().read(true).open(dir.join("LOCK")).ok()?;
    match lock.try_lock_shared() {
        // Released when it is closed, at once.
        Ok(()) => None,
        Err(_) => Some(fs::read_to_string(dir.join("LOCK")).map_or_else(|_| "unknown".into(), |s| s.trim().to_owned())),
    }
}

fn geoip(scene: &Scene) -> Finding {
    let check = "geoip";
    let Some(path) = &scene.settings.dispatch_geoip else {
        return Finding::ok(check, "the country data that is shipped with this binary");
    };
    let geo = match Geo::open(path) {
        Ok(geo) => geo,
        Err(error) => return Finding::failed(check, error.to_string(), "correct dispatch.geoip, or leave it unset"),
    };
    let days = (scene.env.clock.wall_ms() / 1000).saturating_sub(geo.built_s()) / DAY_SECONDS;
    let what = format!("{} can be used, built {days} days ago", path.display());
    if days > GEOIP_DAYS {
        Finding::warning(check, what, "download a new one; a running node takes it by itself")
    } else {
        Finding::ok(check, what)
    }
}

/// Nothing without a file: there is nothing to be wrong.
fn placement(scene: &Scene) -> Option<Finding> {
    let path = scene.settings.dispatch_policies.as_ref()?;
    let check = "placement policies";
    Some(match policies::read(&scene.settings) {
        Ok(_) => Finding::ok(check, format!("{} can be used", path.display())),
        Err(problem) => Finding::failed(check, problem, "correct the file, or leave dispatch.policies unset"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::config::Sources;
    use tern_replication::store::{EmbeddedStore, Options};

    fn scene(flags: &[(&str, &str)]) -> Scene {
        let mut all = vec![("region.id", "1"), ("region.name", "eu")];
        all.extend(flags);
        let flags = all.iter().map(|(key, value)| ("--set".into(), (*key).into(), (*value).into())).collect();
        let settings = Sources { flags, ..Sources::default() }.load().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let env = runtime.block_on(async { tern_net::system::system_env().unwrap() });
        Scene { settings, role: Role::Region, env, running: false }
    }

    #[test]
    fn a_directory_that_does_not_exist_yet_is_looked_for_above_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("not/yet");
        let found = directory(&scene(&[("data", data.to_str().unwrap())]));
        assert!(found[0].what.contains("will be made in"), "{found:?}");
        assert!(found.iter().all(|f| f.state != State::Failed || f.check == "disk speed"), "{found:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        let found = directory(&scene(&[("data", file.to_str().unwrap())]));
        assert!(found[0].state == State::Failed && found[0].what.contains("is no directory"));
        let full = scene(&[("data", dir.path().to_str().unwrap()), ("store.disk_reserve", "1000000GiB")]);
        let found = free_space(&full, dir.path());
        assert!(found.state == State::Failed && found.todo.contains("store_full"), "{found:?}");
    }

    #[test]
    fn the_stores_marker_and_lock_tell_whose_it_is_and_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let scene = scene(&[("data", dir.path().to_str().unwrap())]);
        assert!(store(&scene).todo.contains("--init"));
        let at = dir.path().join("store");
        fs::create_dir(&at).unwrap();
        assert_eq!(store(&scene).state, State::Failed);
        fs::write(at.join("STORE"), "something").unwrap();
        assert!(store(&scene).what.contains("does not say whose"));
        fs::write(at.join("STORE"), "tern store\nformat 1\nregion 2\n").unwrap();
        assert!(store(&scene).what.contains("is region 2's"));
        fs::write(at.join("STORE"), "tern store\nformat 1\nregion 1\n").unwrap();
        let found = store(&scene);
        assert!(
            found.state == State::Failed && found.what.contains("db/version is damaged (it is missing)"),
            "{found:?}"
        );
        fs::remove_dir_all(&at).unwrap();
        drop(EmbeddedStore::open(&at, Options::new(1).init()).unwrap());
        assert_eq!(store(&scene).state, State::Ok);
        let current = at.join("db/keyspaces/0/current");
        let good = fs::read(&current).unwrap();
        fs::write(&current, &good[..9]).unwrap();
        let found = store(&scene);
        assert!(found.state == State::Failed && found.what.contains("0/current is damaged"), "{found:?}");
        assert!(found.todo.contains("tern store restore"), "{found:?}");
        fs::write(&current, good).unwrap();
        fs::write(at.join("LOCK"), "4711\n").unwrap();
        let lock = File::options().write(true).open(at.join("LOCK")).unwrap();
        lock.lock().unwrap();
        assert!(store(&scene).what.contains("in use by process 4711"));
        drop(lock);
        assert_eq!(store(&scene).state, State::Ok);
    }

    #[test]
    fn policies_that_make_no_sense_are_told_and_none_at_all_is_fine() {
        assert_eq!(placement(&scene(&[])), None);
        let file = tempfile::NamedTempFile::new().unwrap();
        let with = |text: &str| {
            fs::write(file.path(), text).unwrap();
            placement(&scene(&[("dispatch.policies", file.path().to_str().unwrap())])).unwrap()
        };
        assert_eq!(with("regions = { eu = 1 }\n[weights]\neu = 2\n").state, State::Ok);
        let found = with("[weights]\neu = 2\n");
        assert!(found.state == State::Failed && found.todo.contains("dispatch.policies"), "{found:?}");
    }

    #[test]
    fn a_geoip_file_that_is_none_is_told_and_none_at_all_is_fine() {
        assert_eq!(geoip(&scene(&[])).state, State::Ok);
        let file = tempfile::NamedTempFile::new().unwrap();
        let found = geoip(&scene(&[("dispatch.geoip", file.path().to_str().unwrap())]));
        assert!(found.state == State::Failed && found.todo.contains("dispatch.geoip"), "{found:?}");
    }
}
