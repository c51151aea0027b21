# crossmodal in a container. launch_container.sh starts it with the data mounted; docs/docker.md tells the rest.
#
#   docker build -t crossmodal .                                            GPUs from the V100 on
#   docker build -t crossmodal --build-arg BASE=python:3.11-slim .          CPUs
#
# A base that brings torch keeps the one it has. PyTorch's builds for CUDA 12.6 are the only ones that still carry
# kernels for the V100 (sm_70). What a base carries, on a machine with any GPU:
#
#   docker run --rm --gpus all BASE python3 -c 'import torch; print(torch.cuda.get_arch_list())'
ARG BASE=pytorch/pytorch:2.13.0-cuda12.6-cudnn9-devel
FROM ${BASE}

# 1 adds an SSH server and client, by which horovodrun starts workers on other machines.
ARG SSH=0

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# A distribution's own Python leaves its headers and venv to packages of their own. No version is pinned, since the
# base decides the distribution.
# hadolint ignore=DL3008
RUN packages=(git make g++); \
    if [ "$(command -v python3)" = /usr/bin/python3 ]; then packages+=(python3-dev python3-venv); fi; \
    if [ "$SSH" = 1 ]; then packages+=(openssh-client openssh-server); fi; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"; \
    rm -rf /var/lib/apt/lists/*

# A plain `docker run` acts as this user; launch_container.sh acts as whoever calls it.
ARG USER_UID=1000
ARG USER_GID=1000
# Ubuntu's images come with a user 1000 of their own. A mounted checkout belongs to somebody else, which git refuses
# unless it is told.
RUN if other=$(getent passwd "$USER_UID"); then userdel --remove "${other%%:*}"; fi; \
    getent group "$USER_GID" >/dev/null || groupadd --gid "$USER_GID" crossmodal; \
    useradd --no-log-init --create-home --shell /bin/bash --password '*' \
        --uid "$USER_UID" --gid "$USER_GID" crossmodal; \
    install --directory --owner="$USER_UID" --group="$USER_GID" /src; \
    git config --system --add safe.directory /src

# The SSH server is one of that user, without root. Its own key and the user's come with the mount on ~/.ssh, so that
# no key lies in the image.
RUN if [ "$SSH" = 1 ]; then \
        rm -f /etc/ssh/ssh_host_*; \
        printf '%s\n' 'Port 2222' 'HostKey /home/crossmodal/.ssh/host_key' 'PidFile none' 'UsePAM no' \
            'PasswordAuthentication no' > /etc/ssh/sshd_config.d/crossmodal.conf; \
    fi

# Some functions look up the user's name, and one that launch_container.sh brings along has none in the image.
ENV PATH=/opt/venv/bin:$PATH \
    USER=crossmodal \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1

# The base's own packages, torch among them, are seen from this environment and stay as they are.
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# The version is pinned, in TORCH.
# hadolint ignore=DL3013
RUN python3 -m venv --system-site-packages /opt/venv; \
    python3 -c 'import torch' 2>/dev/null || python3 -m pip install --extra-index-url "$TORCH_INDEX" "$TORCH"; \
    python3 -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > /opt/constraints.txt

# With CUDA's compiler in the base, Horovod works through NCCL: the NCCL that torch was built with, as a shared library.
# (Linked statically, a second one beside a shared CUDA runtime is a mixture that Horovod warns about.) The wheel of
# NCCL lacks only libnccl.so, the name that a linker asks for. Without that wheel CMake looks where the system has NCCL.
COPY scripts/build_horovod.sh /opt/
RUN --mount=type=cache,target=/var/cache/horovod \
    if command -v nvcc >/dev/null; then \
        export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_NCCL_LINK=SHARED; \
        if nccl=$(python3 -c 'import nvidia.nccl; print(nvidia.nccl.__path__[0])' 2>/dev/null); then \
            mkdir -p /opt/nccl/lib; \
            ln -s "$nccl/include" /opt/nccl/include; \
            ln -s "$nccl/lib/libnccl.so.2" /opt/nccl/lib/libnccl.so; \
            export HOROVOD_NCCL_HOME=/opt/nccl; \
        fi; \
    fi; \
    HOROVOD_CACHE=/var/cache/horovod /opt/build_horovod.sh

# The install is an editable one: the package is imported from /src, so a checkout that is mounted there takes the
# place of this copy without a rebuild.
WORKDIR /src
COPY --chown=${USER_UID}:${USER_GID} . .
RUN python3 -m pip install -c /opt/constraints.txt -e .

USER ${USER_UID}:${USER_GID}
HEALTHCHECK --interval=10m --timeout=2m CMD ["crossmodal", "doctor"]
CMD ["bash"]
