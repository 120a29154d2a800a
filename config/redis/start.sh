#!/bin/sh
# Starts Redis in its container with the users of users.acl; its arguments are those of redis-server.
# The server reads them from its standard input, by their hash: the password stands on no disk, in no command line, and
# not in what ACL LIST answers.
set -eu

: "${REDIS_PASSWORD:?the password of user reliability, see .env.example}"
hash=$(printf %s "$REDIS_PASSWORD" | sha256sum | cut -d ' ' -f 1)
unset REDIS_PASSWORD
users=$(sed "s/PASSWORD_SHA256/$hash/" /etc/redis/users.acl)

exec redis-server "$@" - <<USERS
$users
USERS
