#!/usr/bin/env bash
# Certificates for compose.yaml, in ./certificates: a CA for members among themselves, another for clients, and one
# certificate each for members, peers, the users agent, observer and operator, and the gateway. What is there is kept.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p certificates
cd certificates
umask 077

authority() { # name
  [ -e "$1.key" ] && return
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$1" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout "$1.key" -out "$1.crt" 2>/dev/null
}

certificate() { # name, CA, subject, usages, alternative names or nothing
  [ -e "$1.crt" ] && return
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$3" -keyout "$1.key" -out "$1.csr" 2>/dev/null
  {
    echo "extendedKeyUsage=$4"
    if [ -n "${5:-}" ]; then echo "subjectAltName=$5"; fi
  } >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days 365 -extfile "$1.ext" -out "$1.crt" \
    2>/dev/null
  rm "$1.csr" "$1.ext"
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
[ -e root-password ] || openssl rand -base64 24 >root-password
echo "certificates are in $PWD"
