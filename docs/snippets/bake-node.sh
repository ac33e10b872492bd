#!/bin/sh
# Bakes the images of bake.toml into this machine, or into ROOT. Packer and mkosi run it while an image is built.
# SOURCE is where bake.toml, bake.lock and prebake's package are.
set -eu
source=${SOURCE:-.}
root=${ROOT:-/}

command -v prebake >/dev/null || dpkg --install "$source"/prebake_*.deb
# A containerd that runs on the root would be refused (exit code 5); where there is none, nothing is stopped.
if [ "$root" = / ] && command -v systemctl >/dev/null; then
  systemctl stop containerd.service 2>/dev/null || true
fi
prebake bake -f "$source/bake.toml" --root "$root" --locked --unpack-under 150MiB
prebake seal --root "$root"
prebake images --root "$root"
