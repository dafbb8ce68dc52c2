# bids_scseg as a container, without the Spinal Cord Toolbox: cord masks come from the built-in finder
# or from your own derivatives. How to build and run it: docs/containers.md.
# Singularity.def installs the same things; tests/unit/cli/test_descriptor.py compares the two.
FROM docker.io/library/debian:bookworm-slim

RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*

# The plain requirement is the CUDA build where the package index has it; any other pip requirement
# that constraints.txt allows (the CPU build, say) goes in its place with --build-arg TORCH=….
ARG TORCH=torch==2.13.0

# Dependencies stand in layers of their own, so that a change of the program does not fetch them again.
WORKDIR /opt/source
COPY constraints.txt ./
RUN python3 -m venv /opt/bids_scseg \
 && /opt/bids_scseg/bin/pip install --no-cache-dir --constraint constraints.txt "$TORCH"
COPY pyproject.toml ./
RUN /opt/bids_scseg/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
 && /opt/bids_scseg/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt

COPY LICENSE README.md ./
COPY workflows workflows
COPY bids_scseg bids_scseg
RUN /opt/bids_scseg/bin/pip install --no-cache-dir --no-deps . \
 && rm -rf /opt/source/*

# Whoever runs it, on a read-only root: everything that a library caches goes to /tmp. USER is there
# because an unknown user id has no name to look up. Threads are not set here: the program takes as many
# as it is given CPUs, or what --omp-nthreads says.
ENV PATH=/opt/bids_scseg/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    PYTHONNOUSERSITE=1 \
    PYTHONUNBUFFERED=1 \
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
      org.opencontainers.image.licenses="Apache-2.0"

RUN useradd --no-create-home --uid 1000 scseg
USER scseg
WORKDIR /tmp
# Python turns this signal into an orderly end; as process 1 it would ignore the usual SIGTERM.
STOPSIGNAL SIGINT
ENTRYPOINT ["bids_scseg"]
