# bids_scseg as a container. How to build and run it: docs/containers.md.
# Singularity.def installs the same things; tests/unit/cli/test_descriptor.py compares the two.

# The Spinal Cord Toolbox, in an environment of its own, with the models that are called; its compiler and
# git stay in this stage. --build-arg SCT=none leaves it out: cords are then found by the built-in network.
FROM docker.io/library/debian:bookworm-slim AS sct
ARG SCT=7.3
ARG SCT_SOURCE=https://github.com/spinalcordtoolbox/spinalcordtoolbox.git
COPY containers/install_sct.sh /opt/source/containers/install_sct.sh
RUN sh /opt/source/containers/install_sct.sh "$SCT" "$SCT_SOURCE" /opt/sct

FROM docker.io/library/debian:bookworm-slim AS runtime

# Versions of Debian's packages are not pinned: a point release takes the old ones off the mirrors.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*

# The plain requirement is whichever build the package index offers, usually the CUDA build; any other
# pip requirement that constraints.txt allows (the CPU build, say) goes in its place with --build-arg TORCH=….
ARG TORCH=torch==2.13.0
# Extras of pyproject.toml to have inside, such as --build-arg EXTRAS=train or EXTRAS=train,export; none: the app alone.
ARG EXTRAS=none

# Dependencies stand in layers of their own, so that a change of the program does not fetch them again.
WORKDIR /opt/source
COPY constraints.txt ./
RUN python3 -m venv /opt/bids_scseg \
 && /opt/bids_scseg/bin/pip install --no-cache-dir --constraint constraints.txt "$TORCH"
COPY pyproject.toml ./
RUN /opt/bids_scseg/bin/python -c "import sys, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = [name for name in sys.argv[1].split(',') if name != 'none']; print(*project['dependencies'], *(line for name in extras for line in project['optional-dependencies'][name]), sep='\n')" "$EXTRAS" > requirements.txt \
 && /opt/bids_scseg/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

ARG SCT=7.3
# hadolint ignore=DL3008
RUN if [ "$SCT" != none ]; then set -e; apt-get update; apt-get install --yes --no-install-recommends libglib2.0-0; rm -rf /var/lib/apt/lists/*; fi
COPY --from=sct /opt/sct /opt/sct

COPY LICENSE README.md ./
COPY containers containers
COPY workflows workflows
COPY bids_scseg bids_scseg
RUN /opt/bids_scseg/bin/pip install --no-cache-dir --no-deps . \
 && install -D --mode=755 containers/selftest.sh /opt/bids_scseg/bin/bids_scseg_selftest \
 && rm -rf /opt/source/*

# Whoever runs it, on a read-only root: everything that a library caches goes to /tmp. USER is there
# because an unknown user id has no name to look up. One thread for each process: sessions run side by side;
# the inference process gets its own number, all CPUs or what --omp-nthreads says, and so does SCT.
ENV PATH=/opt/bids_scseg/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/sct/bin \
    LANG=C.UTF-8 \
    PYTHONNOUSERSITE=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1 \
    MKL_NUM_THREADS=1 \
    NO_ET=1 \
    NIPYPE_NO_ET=1 \
    USER=scseg \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    NIPYPE_CONFIG_DIR=/tmp/nipype \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor

LABEL org.opencontainers.image.title="bids_scseg" \
      org.opencontainers.image.description="BIDS App: spinal cord MS lesion segmentation from every MR sequence that a session has" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.authors="The bids_scseg developers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
# The commit that it was built from: --build-arg REVISION=$(git rev-parse HEAD)
ARG REVISION=unknown
LABEL org.opencontainers.image.revision="$REVISION"

RUN useradd --no-create-home --uid 1000 scseg
USER 1000:1000
WORKDIR /tmp
# Python turns this signal into an orderly end; as process 1 it would ignore the usual SIGTERM.
STOPSIGNAL SIGINT
ENTRYPOINT ["bids_scseg"]
