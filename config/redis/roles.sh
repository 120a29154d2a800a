#!/bin/sh
# Makes a password for each role of roles.acl: FOLDER/users.acl for the configuration of Redis (`include
# FOLDER/users.acl`; it holds hashes only), and FOLDER/<role>.password for who has that role. A password that is there
# already is kept, so it can be run again after roles.acl has changed; delete one to have a new one made.
#
#   sh config/redis/roles.sh FOLDER
set -eu
umask 077

folder=${1:?usage: sh roles.sh FOLDER}
rules=$(dirname "$0")/roles.acl
mkdir -p "$folder"

# Redis wants each user on one line.
text=$(awk '/^ / { sub(/^ +/, " "); printf "%s", $0; next } { if (NR > 1) print ""; printf "%s", $0 } END { print "" }' "$rules")
for role in hook worker beat operator readonly; do
    file=$folder/$role.password
    [ -s "$file" ] || od -An -N 32 -tx1 /dev/urandom | tr -d ' \n' >"$file"
    hash=$(tr -d '\n' <"$file" | sha256sum | cut -d ' ' -f 1)
    name=$(printf %s "$role" | tr '[:lower:]' '[:upper:]')_SHA256
    text=$(printf '%s\n' "$text" | sed "s/$name/$hash/")
done
printf '%s\n' "$text" >"$folder/users.acl.new"
mv "$folder/users.acl.new" "$folder/users.acl"
