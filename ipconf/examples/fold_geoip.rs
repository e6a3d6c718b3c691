//! Folds an MMDB for shipping, see `data/refresh.sh`:
//! `cargo run -p tern-ipconf --example fold_geoip -- country.mmdb out.folded`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(from), Some(to)) = (arguments.next(), arguments.next()) else {
        return Err("usage: fold_geoip MMDB OUT".into());
    };
    let mmdb = std::fs::read(from)?;
    let reader = maxminddb::Reader::from_source(&mmdb)?;
    let (nodes, record_size) = (reader.metadata().node_count, reader.metadata().record_size);
    std::fs::write(to, tern_ipconf::geo::fold(&mmdb, nodes, record_size)?)?;
    Ok(())
}
