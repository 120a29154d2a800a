#!/usr/bin/env bash
# Proves docker-compose.yml with a real dockerd on this machine: builds the image, starts the demo, kills a VMM, and asks
# Prometheus whether it came back. Needs root, Debian's package archive and the Python package index, and about 10
# minutes; nothing of it is part of the normal tests.
#
#   tests/compose/prove.sh
#
# dockerd has a network and mount namespace of its own, and all its data in a temporary folder: it takes no port of this
# machine, changes no firewall rule, and nothing of it stays but the Debian packages.
#
# There is no registry here, so the images are made of Debian packages, under the names that docker-compose.yml uses.
# So what is proven is the Dockerfile, the compose file and the configuration; not the images of Docker Hub, and not
# their versions. Grafana is in no Debian package: a placeholder answers its health check, and that is all it does.
#
# In the environment:
#   PROVE_CACHE    keep the Debian tree in this folder, for the next run
#   PROVE_COMPOSE  "v1" for Debian's docker-compose 1.29; else Compose v2
#   PROVE_SOURCE   the project; default: where this script is
set -euo pipefail

SOURCE=${PROVE_SOURCE:-$(cd "$(dirname "$0")/../.." && pwd)}
WORK=$(mktemp -d "${TMPDIR:-/tmp}/prove-compose.XXXXXX")
CACHE=${PROVE_CACHE:-$WORK/cache}
SUITE=bookworm # has python 3.11
V2_SUITE=trixie # the first Debian with Compose v2
HEALTHY_VMS=20
DOCKERD_PID=

export DOCKER_HOST=unix://$WORK/docker.sock
export DOCKER_CONFIG=$WORK/config # no login and no plugin of this machine
export DOCKER_BUILDKIT=0          # Debian's dockerd comes without buildx
export DEBIAN_FRONTEND=noninteractive

say() { printf '\n== %s\n' "$*"; }
fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

tidy_up() {
    local status=$?
    trap - EXIT
    set +e
    if [ -n "$DOCKERD_PID" ] && kill -0 "$DOCKERD_PID" 2>/dev/null; then
        if [ "$status" -ne 0 ]; then
            compose ps
            compose logs --no-color --tail 20
        fi
        compose down --volumes --timeout 15 >/dev/null 2>&1
        kill "$DOCKERD_PID"
        wait "$DOCKERD_PID"
    fi
    rm -rf --one-file-system "$WORK"
    [ "$status" -eq 0 ] || printf 'FAILED with status %s\n' "$status" >&2
    exit "$status"
}
trap tidy_up EXIT
trap 'exit 130' INT TERM

# Retries a command until it succeeds; the first argument says for how many seconds.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 1
    done
}

install_packages() {
    [ "$(id -u)" -eq 0 ] || fail "needs root"
    local missing=() policy=/usr/sbin/policy-rc.d
    local package
    for package in docker.io docker-compose debootstrap iproute2 iptables; do
        dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    apt-get update -qq
    # The packages would start a dockerd for the whole machine.
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        apt-get install -qq -y --no-install-recommends "${missing[@]}" || { rm "$policy"; return 1; }
        rm "$policy"
    else
        apt-get install -qq -y --no-install-recommends "${missing[@]}"
    fi
}

# The archive that this machine's apt is set up for.
# shellcheck disable=SC2016 # apt expands it
archive() { apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Label: Debian' | sort -u | head -n 1; }

# Compose v2 of a later Debian, by lists of its own: it is one program that needs nothing of that release but the C
# library, and nothing is installed.
fetch_compose_v2() {
    local plugins=$DOCKER_CONFIG/cli-plugins lists=$WORK/apt
    mkdir -p "$plugins" "$lists"/lists/partial "$lists"/cache/archives/partial "$lists"/parts
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$(archive)" "$V2_SUITE" \
        >"$lists/sources.list"
    local apt=(apt-get -qq -o Dir::Etc::SourceList="$lists/sources.list" -o Dir::Etc::SourceParts="$lists/parts"
        -o Dir::State::Lists="$lists/lists" -o Dir::Cache="$lists/cache" -o APT::Sandbox::User=root)
    "${apt[@]}" update
    (cd "$lists" && "${apt[@]}" download docker-compose)
    dpkg-deb --extract "$lists"/docker-compose_*.deb "$lists/x"
    cp "$lists/x/usr/libexec/docker/cli-plugins/docker-compose" "$plugins/docker-compose"
}

compose() {
    local options=(--project-name prove --project-directory "$SOURCE" --file "$SOURCE/docker-compose.yml"
        --env-file "$WORK/env" --profile demo)
    if [ "${PROVE_COMPOSE:-v2}" = v1 ]; then
        docker-compose "${options[@]}" "$@"
    else
        docker compose "${options[@]}" "$@"
    fi
}

# One tree for all images. The wheels lie in it, because the build has no network here.
make_tree() {
    local tree=$CACHE/tree
    if [ ! -e "$CACHE/tree.done" ]; then
        rm -rf --one-file-system "$tree"
        mkdir -p "$CACHE"
        debootstrap --variant=minbase \
            --include=python3,python3-venv,python3-pip,redis-server,prometheus,prometheus-alertmanager,wget,ca-certificates \
            "$SUITE" "$tree" "$(archive)" >"$CACHE/debootstrap.log"
        rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
        ln -s /usr/bin/python3 "$tree/usr/local/bin/python"
        touch "$CACHE/tree.done"
    fi
    # Anew each time, by the Python that is to install them.
    rm -rf "$tree/wheels" "$tree/etc/pip.conf"
    mkdir "$tree/wheels"
    cp "$SOURCE/pyproject.toml" "$tree/wheels/"
    cp --dereference /etc/resolv.conf "$tree/etc/resolv.conf"
    cp --dereference /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/ca-certificates.crt"
    chroot "$tree" env -u PIP_FIND_LINKS python3 - <<'PYTHON'
import subprocess, tomllib
project = tomllib.load(open("/wheels/pyproject.toml", "rb"))
wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
subprocess.run(["python3", "-m", "pip", "--quiet", "download", "--dest", "/wheels", *wanted], check=True)
PYTHON
    printf '[global]\nno-index = true\nfind-links = /wheels\nroot-user-action = ignore\n' >"$tree/etc/pip.conf"
}

start_dockerd() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare --net --mount sh -c 'ip link set lo up && exec dockerd --host "$DOCKER_HOST" --data-root "$0/data" \
        --exec-root "$0/exec" --pidfile "$0/docker.pid"' "$WORK" >"$WORK/dockerd.log" 2>&1 &
    DOCKERD_PID=$!
    within 60 docker version >/dev/null 2>&1 || { tail -n 20 "$WORK/dockerd.log"; fail "dockerd does not start"; }
    docker info --format 'dockerd {{.ServerVersion}}, storage {{.Driver}}, cgroup v{{.CgroupVersion}}'
}

# For requests to published ports: as this machine would make them, in the network of dockerd.
inside() { nsenter --net="/proc/$DOCKERD_PID/ns/net" "$@"; }

make_images() {
    tar -C "$CACHE/tree" --exclude=./proc/* --exclude=./sys/* -c . | docker import - prove-base >/dev/null
    local image
    while read -r image; do
        case $image in
        redis:*) printf 'FROM prove-base\nRUN install -d -o redis -g redis /data\nVOLUME /data\nWORKDIR /data\n' ;;
        prom/prometheus:*) printf 'FROM prove-base\nRUN install -d -o nobody /prometheus\nUSER nobody\nENTRYPOINT ["/usr/bin/prometheus"]\n' ;;
        prom/alertmanager:*) printf 'FROM prove-base\nRUN install -d -o nobody /alertmanager\nUSER nobody\nENTRYPOINT ["/usr/bin/prometheus-alertmanager"]\n' ;;
        grafana/grafana:*) grafana_placeholder ;;
        python:*) printf 'FROM prove-base\n' ;;
        *) fail "no Debian package stands for image $image" ;;
        esac >"$WORK/Dockerfile"
        docker build --quiet --tag "$image" - <"$WORK/Dockerfile" >/dev/null
        printf '%-28s made of %s\n' "$image" "$(packages_of "$image")"
    done < <(sed -n 's/^ *image: *//p' "$SOURCE/docker-compose.yml" | grep -v ':local$'
        sed -n 's/^ARG BASE=//p' "$SOURCE/Dockerfile")
}

packages_of() {
    local name
    case $1 in
    redis:*) name=redis-server ;;
    prom/prometheus:*) name=prometheus ;;
    prom/alertmanager:*) name=prometheus-alertmanager ;;
    python:*) name=python3.11 ;;
    *)
        printf 'nothing: a PLACEHOLDER that answers /api/health'
        return
        ;;
    esac
    chroot "$CACHE/tree" dpkg-query --show "$name" | tr '\t' ' '
}

grafana_placeholder() {
    cat <<'DOCKERFILE'
FROM prove-base
RUN printf '%s\n' \
    'from http.server import BaseHTTPRequestHandler, HTTPServer' \
    'class Health(BaseHTTPRequestHandler):' \
    '    def do_GET(self):' \
    '        self.send_response(200 if self.path == "/api/health" else 404)' \
    '        self.end_headers()' \
    'HTTPServer(("", 3000), Health).serve_forever()' > /placeholder.py
USER nobody
ENTRYPOINT ["python", "/placeholder.py"]
DOCKERFILE
}

refused_without_passwords() {
    local said
    if said=$(compose config 2>&1); then fail "the compose file works without passwords"; fi
    grep -F "copy .env.example to .env" <<<"$said" | head -n 1
}

make_passwords() {
    sed -n 's/^\([A-Z_]*\)=$/\1/p' "$SOURCE/.env.example" | while read -r name; do
        printf '%s=%s\n' "$name" "$(od -An -N 24 -tx1 /dev/urandom | tr -d ' \n')"
    done >"$WORK/env"
}

reliability() { compose exec -T worker reliability "$@"; }

healthy_vms() { reliability vm list --state healthy -o name 2>/dev/null | wc -l; }

all_vms_healthy() { [ "$(healthy_vms)" -eq "$HEALTHY_VMS" ]; }

# Evaluates an expression about `it`, the JSON on standard input.
about() { python3 -c "import json, sys; it = json.load(sys.stdin); print($1)"; }

health() { docker inspect --format '{{.State.Health.Status}}' "$(compose ps --quiet "$1")"; }

# All that should last is healthy, and what should end has ended well.
all_containers_well() {
    local service
    for service in $SERVICES; do
        [ "$(health "$service")" = healthy ] || return 1
    done
    [ "$(docker inspect --format '{{.State.Status}} {{.State.ExitCode}}' "$(container_of demo-vms)")" = "exited 0" ]
}

# Also when it has ended.
container_of() {
    docker ps --all --quiet --filter label=com.docker.compose.project=prove --filter "label=com.docker.compose.service=$1"
}

prometheus() { inside curl --silent --show-error --fail --get "http://127.0.0.1:9090/api/v1/$1" "${@:2}"; }

# The value of a query; 0 where there is none.
value() {
    prometheus query --data-urlencode "query=$1" |
        about 'sum(int(float(each["value"][1])) for each in it["data"]["result"])'
}

more_than() { [ "$(value "$1")" -gt "$2" ]; }

targets_up() { more_than 'up{job=~"reliability-.*"}' 2; }

pid_of() { reliability vm show "$1" -o json | about 'it["vm"]["process"]["pid"]'; }

another_pid() {
    local now
    now=$(pid_of "$1" 2>/dev/null) && [ "$now" != "$2" ]
}

published_ports() { inside ss --no-header --listening --tcp --numeric | awk '{print $4}' | sort -u; }

prepare() {
    say "packages"
    install_packages
    mkdir -p "$DOCKER_CONFIG"
    touch "$WORK/env"
    if [ "${PROVE_COMPOSE:-v2}" = v1 ]; then
        docker-compose version --short
    else
        fetch_compose_v2
        docker compose version
    fi

    say "without passwords nothing starts"
    refused_without_passwords
    make_passwords
    SERVICES=$(compose config --services | grep -vx demo-vms)

    say "dockerd"
    make_tree
    start_dockerd
    make_images

    say "our image"
    # Every service of ours has the same one, and Debian's dockerd would build them all at once.
    compose build beat-1
    docker image inspect --format 'user {{.Config.User}}, entry point {{.Config.Entrypoint}}' metald-reliability:local
}

prove() {
    say "docker compose --profile demo up"
    compose up -d
    within 180 all_containers_well || fail "not all containers became healthy"
    compose ps
    within 60 all_vms_healthy || fail "not all VMs became healthy"
    reliability status

    say "published ports, all on loopback"
    published_ports
    ! published_ports | grep -v '^127\.0\.0\.1:' || fail "a port is open to others"

    say "Prometheus scrapes the worker and both beats, evaluates the rules, and knows Alertmanager"
    within 90 targets_up || fail "not all targets are up"
    prometheus query --data-urlencode 'query=up' | about '"\n".join(
        " ".join([each["metric"]["job"], each["metric"]["instance"], each["value"][1]]) for each in it["data"]["result"])'
    # Each group has its turn within its interval.
    sleep 35
    prometheus rules >"$WORK/rules"
    about 'sum(len(group["rules"]) for group in it["data"]["groups"]), "rules"' <"$WORK/rules"
    ! grep -o '"lastError":"[^"]\+"' "$WORK/rules" || fail "a rule cannot be evaluated"
    prometheus alerts | about '"alerts:", [(each["labels"]["alertname"], each["state"]) for each in it["data"]["alerts"]]'
    [ "$(prometheus alertmanagers | about 'len(it["data"]["activeAlertmanagers"])')" = 1 ] || fail "no Alertmanager"

    say "one VMM is killed inside the worker's container"
    local metric=unkey_metald_vm_recovery_success_total before pid
    before=$(value "$metric")
    pid=$(pid_of demo-07)
    compose exec -T worker python -c "import os, signal; os.kill($pid, signal.SIGKILL)"
    within 30 another_pid demo-07 "$pid" || fail "demo-07 did not come back"
    reliability events --vm demo-07 | tail -n 3
    within 60 more_than "$metric" "$before" || fail "$metric did not grow"
    printf '%s: %s before, %s after\n' "$metric" "$before" "$(value "$metric")"
    prometheus query --data-urlencode "query=$metric"
    echo

    say "Redis is restarted: records and passwords outlast it"
    compose restart redis
    within 60 all_vms_healthy || fail "VMs are missing after Redis was restarted"
    reliability status

    say "passwords are changed, so all containers but two are made anew: VMMs died with theirs, and come back"
    pid=$(pid_of demo-07)
    make_passwords
    compose up -d
    [ ! -e "/proc/$pid" ] || fail "a VMM outlived its container"
    reliability status
    within 180 another_pid demo-07 "$pid" || fail "demo-07 did not come back"
    within 60 all_vms_healthy || fail "not all VMs came back"
    reliability status

    say "Redis refused nothing"
    compose logs --no-color >"$WORK/logs" 2>&1
    ! grep NOPERM "$WORK/logs" || fail "Redis refused a command"

    say "down"
    compose down --volumes --timeout 15
    [ -z "$(docker volume ls --quiet)$(docker ps --all --quiet)" ] || fail "something is left"
}

# Not when this file is sourced, to look into the running containers step by step. The shell reads no further, so a change
# of this file does not reach a run that is at work.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    prepare
    prove
    say "PROVEN"
    exit
fi
