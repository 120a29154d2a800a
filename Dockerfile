# worker, beat, Flower and the command line of this project in one image; the first argument says which.
#
# What runs well in a container: beat, Flower, the command line. They keep nothing on disk.
#
# What a worker in a container can do: all it does on a host, for VMMs that are in the same container. It needs its
# state folder on a volume, and the pid namespace of the host (`pid: host`): it judges processes of its own namespace only,
# and a container that is made or started anew has another, in which it would take all VMMs of before for neither alive
# nor dead, and never bring one back.
# What it cannot do:
# - Let VMs outlive it. The VMMs it starts end with its container, at every restart, upgrade or crash of it.
# - Start real VMs as this image stands: it has no VMM, and its user may open neither /dev/kvm nor TAP devices.
# So the workers of real VMs run on their hosts, beside containers with everything else: docs/compose.md.

# Another base: any image with python 3.11 or later, pip and useradd, `--build-arg BASE=…`.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
# A mirror of the Python package index, where there is one: `--build-arg PIP_INDEX_URL=…`.
ARG PIP_INDEX_URL
WORKDIR /src
COPY pyproject.toml README.md ./
COPY workers workers
COPY beat beat
# pip stays outside: what runs needs none.
RUN python -m venv --without-pip /opt/reliability \
    && python -m pip --python /opt/reliability/bin/python install --no-cache-dir .

FROM ${BASE}
# The folder belongs to the user already, so that a volume mounted there does, too.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/metald-reliability --shell /usr/sbin/nologin reliability \
    && install --directory --owner reliability --mode 0700 /var/lib/metald-reliability
COPY --from=build /opt/reliability /opt/reliability
ENV PATH=/opt/reliability/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RELIABILITY_STATE_DIR=/var/lib/metald-reliability
USER reliability
ENTRYPOINT ["reliability"]
CMD ["--help"]
