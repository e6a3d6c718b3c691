//! The committed wire code is what the proto files say.
//!
//! `TERN_REGENERATE=1 cargo test -p tern-core --test generated` writes it anew.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;

#[test]
fn generated_wire_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["tern/v1/client.proto", "tern/v1/dispatch.proto", "tern/node/v1/node.proto"];
    let descriptors = protox::compile(files, [root.join("proto")]).unwrap();
    let fresh = tempfile::tempdir().unwrap();
    prost_build::Config::new().bytes(["."]).btree_map(["."]).out_dir(fresh.path()).compile_fds(descriptors).unwrap();
    for name in ["tern.v1.rs", "tern.node.v1.rs"] {
        let committed = root.join("src/wire/gen").join(name);
        let expected = std::fs::read_to_string(fresh.path().join(name)).unwrap();
        if std::env::var_os("TERN_REGENERATE").is_some() {
            std::fs::write(&committed, &expected).unwrap();
        }
        let found = std::fs::read_to_string(&committed).unwrap_or_default();
        assert!(found == expected, "{} is stale: run with TERN_REGENERATE=1", committed.display());
    }
}
