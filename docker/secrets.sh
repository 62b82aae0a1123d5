#!/bin/sh
# Make the secrets that compose.yaml mounts, in docker/secrets/. Those that are there already stay as they are.
#
# The folder is yours alone (0700). The files in it can be read by anyone who gets that far: a container's user is
# another one than yours, and Compose mounts a file with the mode it has.
set -eu
cd "$(dirname "$0")"
umask 077
mkdir -p secrets
cd secrets

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

for name in worker_token client_key metrics_key redis_password grafana_password; do
    [ -s "$name" ] || random >"$name"
done
[ -e hf_token ] || : >hf_token
printf '%s\n%s\n' "$(cat client_key)" "$(cat metrics_key)" >api_keys
printf 'redis://rl-onoff:%s@redis:6379/0' "$(cat redis_password)" >cache_url
digest=$(sha256sum <redis_password | cut -d ' ' -f 1)
# What app/services/cache sends, on its own keys, and nothing else. No other user may do anything.
printf '%s\n' 'user default off' \
    "user rl-onoff on #$digest ~rl-onoff:* resetchannels -@all +ping +get +mget +set +unlink" >redis.acl
chmod 644 ./*
echo "docker/secrets: ready. Clients ask with the key in docker/secrets/client_key."
