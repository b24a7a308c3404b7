#!/usr/bin/env bash
# Certificates for compose.yaml, in ./certificates: an authority for members among themselves, another for clients, and
# a certificate each for members, peers, the users agent, observer and operator, and the gateway. A certificate is kept
# until 30 days before its end, and is then made anew, with a new key. Running containers see the new files.
#
# The authorities' keys lie in certificates/authorities, which no container mounts. The folder certificates is its
# owner's alone, so the files that an unprivileged container reads may be readable to all.
set -euo pipefail
cd "$(dirname "$0")"
umask 077
mkdir -p certificates/authorities
chmod 700 certificates certificates/authorities
cd certificates
soon=2592000 # seconds: 30 days

die() {
  echo "certificates.sh: $*" >&2
  exit 1
}

quietly() { # openssl's words are shown when it fails
  local said
  said=$(openssl "$@" 2>&1) || die "openssl $1 failed: $said"
}

ends() { openssl x509 -enddate -noout -in "$1.crt" | cut -d= -f2; }

new_key() { quietly ecparam -name prime256v1 -genkey -noout -out "$1"; }

authority() { # name
  local key="authorities/$1.key"
  if [ -e "$1.key" ]; then # as an older version of this script laid it out
    [ ! -e "$key" ] || die "both $1.key and $key are there: delete the one that does not belong to $1.crt"
    mv "$1.key" "$key"
    rm -f "$1.srl"
    echo "$1: its key is now in certificates/authorities"
  fi
  if [ ! -e "$1.crt" ]; then
    [ ! -e "$key" ] || die "$key is there without $1.crt: put the certificate back, or delete the key for a new authority"
    new_key new.key
    quietly req -x509 -new -key new.key -days 3650 -subj "/CN=$1" -addext "keyUsage=critical,keyCertSign,cRLSign" -out new.crt
    mv new.key "$key"
    mv new.crt "$1.crt"
    echo "$1: made, ends $(ends "$1")"
  fi
  openssl x509 -checkend "$soon" -noout -in "$1.crt" >/dev/null ||
    die "the authority $1 ends $(ends "$1"): replace it by runbooks/ca-rotation.md"
}

serves() { # name, CA: the certificate is there with its key, is of this authority, and does not end soon
  [ -e "$1.crt" ] && [ -e "$1.key" ] || why="made"
  [ -n "$why" ] || openssl x509 -checkend "$soon" -noout -in "$1.crt" >/dev/null || why="renewed, since it ended $(ends "$1")"
  [ -n "$why" ] || openssl verify -CAfile "$2.crt" "$1.crt" >/dev/null 2>&1 || why="renewed, since $2 had not signed it"
  [ -z "$why" ]
}

certificate() { # name, CA, subject, usages, alternative names or nothing
  local why=""
  if serves "$1" "$2"; then
    echo "$1: kept, ends $(ends "$1")"
    return
  fi
  [ -e "authorities/$2.key" ] || die "certificates/authorities/$2.key is missing: $1 cannot be signed without it"
  new_key new.key
  quietly req -new -key new.key -subj "$3" -out new.csr
  {
    echo "extendedKeyUsage=$4"
    if [ -n "${5:-}" ]; then echo "subjectAltName=$5"; fi
  } >new.ext
  quietly x509 -req -in new.csr -CA "$2.crt" -CAkey "authorities/$2.key" -set_serial "0x$(openssl rand -hex 16)" \
    -days 365 -extfile new.ext -out new.crt
  # Written into the files that are there: a container's mount would stay with a file that was replaced.
  cat new.key >"$1.key"
  cat new.crt >"$1.crt"
  rm new.key new.csr new.ext new.crt
  echo "$1: $why, ends $(ends "$1")"
}

names="DNS:etcd-1,DNS:etcd-2,DNS:etcd-3,DNS:localhost,IP:127.0.0.1"
authority peer-ca
authority client-ca
certificate peer peer-ca /CN=etcd-peer serverAuth,clientAuth "$names"
certificate server client-ca /CN=etcd-server serverAuth,clientAuth "$names"
for user in agent observer operator; do
  certificate "$user" client-ca "/CN=$user" clientAuth
done
certificate gateway client-ca /O=gateway clientAuth # no name: etcd's gateway refuses those that have one
if [ ! -e root-password ]; then
  openssl rand -base64 24 >new.password
  mv new.password root-password
  echo "root-password: made"
fi
chmod 644 ./*.crt agent.key # an agent's container is not root
echo "certificates are in $PWD"
