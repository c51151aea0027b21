# crossmodal in a container; launch_container.sh starts it with the data mounted.
#
#   docker build -t crossmodal .
#
# The defaults build for CPUs. For another machine choose a base that suits its driver and name its build of torch;
# a base that brings torch keeps the one it has.
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG TORCH=torch==2.13.0
# An index for pip beside its own: by default the one with PyTorch's CPU builds.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1

RUN python3 -c 'import torch' 2>/dev/null || python3 -m pip install "${TORCH}"
RUN python3 -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > /constraints.txt

# The install is an editable one: the package is imported from /src, so a checkout that is mounted there takes the
# place of this copy without a rebuild.
WORKDIR /src
COPY . /src
RUN python3 -m pip install -c /constraints.txt -e .

CMD ["bash"]
