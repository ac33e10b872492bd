#!/usr/bin/env bash
# The world in which the commands of a page run (tests/interop/docs.rs). Usage, in new mount, network and PID namespaces:
# world.sh WORLD STORE PEERS PREBAKE. WORLD is a folder with page.sh, files and bin; STORE is what the registries hold. The page sees
# it all as /srv, and works in /srv/page. The machine's files are read only but for layers of the world's own on /etc, /var, /media and /run; /tmp is
# new; only loopback is there; and all ends when the page does.
#
# | name in references | what is there |
# |---|---|
# | registry.k8s.io, docker.io, quay.io | open to all, by an authority that this world trusts |
# | registry.example | for `user` with the password `secret`, by an authority of its own: `ca.crt` in the page's folder |
# | mirror.example:5000 | empty, and one may push; by the authority that this world trusts |
set -euo pipefail

ip link set lo up
mkdir -p "$1"/{containerd,page,home,output,pki,store,peers}
touch "$1/bin/prebake"
mount --bind "$2" "$1/store"
mount --bind "$3" "$1/peers"
mount --bind "$4" "$1/bin/prebake"
mount --rbind "$1" /srv
world=/srv
for dir in etc var media run; do
  mkdir -p "$world/machine/$dir" "$world/scratch/$dir"
  mount -t overlay -o "lowerdir=/$dir,upperdir=$world/machine/$dir,workdir=$world/scratch/$dir" overlay "/$dir"
done
# Snapshots cannot lie on an overlay.
mkdir -p /var/lib/containerd /media/usb
mount --bind "$world/containerd" /var/lib/containerd
mount -t tmpfs tmpfs /tmp
findmnt --noheadings --raw --output TARGET | grep -vE '^/(dev|etc|media|proc|run|srv|sys|tmp|var)(/|$)' |
  while read -r mounted; do mount -o remount,bind,ro "$mounted"; done

{
  echo "127.0.0.1 localhost registry.k8s.io docker.io registry-1.docker.io quay.io"
  echo "127.0.0.2 registry.example"
  echo "127.0.0.3 mirror.example"
} >/etc/hosts

pki=$world/pki
# certificate NAME CA ALTERNATIVE-NAMES
certificate() {
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$pki/$1.key" -subj "/CN=$1" -out "$pki/$1.csr"
  openssl x509 -req -in "$pki/$1.csr" -CA "$pki/$2.crt" -CAkey "$pki/$2.key" -CAcreateserial -days 2 \
    -extfile <(echo "subjectAltName=$3"; echo extendedKeyUsage=serverAuth) -out "$pki/$1.crt"
}
for ca in everybody company; do
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$pki/$ca.key" -subj "/CN=$ca" -days 2 -out "$pki/$ca.crt"
done 2>"$pki/log"
certificate open everybody DNS:registry.k8s.io,DNS:registry-1.docker.io,DNS:quay.io,DNS:mirror.example 2>>"$pki/log"
certificate closed company DNS:registry.example 2>>"$pki/log"
cp "$pki/everybody.crt" /etc/ssl/certs/ca-certificates.crt
cp "$pki/company.crt" "$world/page/ca.crt"
# user:secret, as `htpasswd -B` writes it.
# shellcheck disable=SC2016
echo 'user:$2b$04$V/ooTt0.J3dQYPus7N9kO.RuVX09EF3CZq.1Eu2U.UNG6ZIRllvBC' >"$pki/users"

# registry NAME ADDRESS CERTIFICATE STORE SETTINGS
registry() {
  cat >"$pki/$1.yml" <<END
version: 0.1
storage: {filesystem: {rootdirectory: $4}}
http: {addr: "$2", tls: {certificate: $pki/$3.crt, key: $pki/$3.key}}
$5
END
  "$world/peers/registry/usr/bin/docker-registry" serve "$pki/$1.yml" >"$pki/$1.log" 2>&1 &
  for _ in $(seq 600); do
    ! (: <>"/dev/tcp/${2/://}") 2>/dev/null || return 0
    sleep 0.1
  done
  cat "$pki/$1.log" >&2
  return 1
}
registry open 127.0.0.1:443 open "$world/store" ""
registry closed 127.0.0.2:443 closed "$world/store" "auth: {htpasswd: {realm: company, path: $pki/users}}"
registry mirror 127.0.0.3:5000 open "$world/mirror" ""

cd "$world/page"
exec env -i HOME="$world/home" LANG=C.UTF-8 PATH="$world/bin:$world/peers/registry/usr/bin:$world/peers/containerd-2.1.9/usr/bin:$world/peers/runc/usr/sbin:$world/peers/parallel/usr/bin:$PATH" \
  bash "$world/page.sh"
