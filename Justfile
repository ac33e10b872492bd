# Everything `.ci/run` runs
check:
    .ci/run

# All tests, against the real peers too
test:
    tests/run

# Fetching beside skopeo and ctr, unpacking beside containerd, both over a slow link, a whole node; the tables go into benches/README.md
bench-peers rounds="5":
    benches/peers {{rounds}}
    benches/unpack {{rounds}}
    benches/link {{rounds}}
    benches/node {{rounds}}

# Seventy images made known to a running containerd, beside `ctr images import`; needs 25 GiB of disk for a while
bench-first-boot rounds="3":
    benches/first-boot {{rounds}}

# Real images from an embedded registry, into ./prebake-demo
demo:
    cargo run --release -- demo

# One static binary, against musl; prints where it is
static target="":
    PREBAKE_COMMIT=$(git rev-parse HEAD) packaging/static {{target}}

# A Debian package of the static binary, which is built first, into the current folder
deb: static
    packaging/deb

# Fuzz: bolt, tar, unpack, gunzip, reference or document (needs nightly and cargo-fuzz)
fuzz target="bolt" seconds="60":
    cd tests/fuzz && cargo +nightly fuzz run --fuzz-dir . {{target}} -- -max_total_time={{seconds}} -max_len=65536 -detect_leaks=0

# Known vulnerabilities of dependencies (needs the advisory database)
audit:
    cargo deny check advisories

# Keep what the fuzzer found for bolt that reaches code nothing else does
fuzz-keep:
    cd tests/fuzz && cargo +nightly fuzz cmin --fuzz-dir . bolt
    for file in tests/fuzz/corpus/bolt/*; do od -An -v -tx1 "$file" | tr -d ' \n'; echo; done | sort > fixtures/bolt.corpus
