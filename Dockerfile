# imprompt in a container, with its embedded model:
#
#     docker build --tag imprompt .
#     docker run --rm --volume "$PWD:/work" imprompt generate docs/examples/ponytail.png
#
# For a GPU, start from an image that has PyTorch with CUDA:
#
#     docker build --tag imprompt:cuda --build-arg BASE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime .
#     docker run --rm --gpus all --volume "$PWD:/work" imprompt:cuda generate cat.png --base sd15.safetensors
#
# /work is the working directory. Models from the hub are kept in the volume /models.

ARG BASE=python:3.12-slim
FROM ${BASE}

# EXTRAS are those of pyproject.toml. PIP_ARGS may name another package index, for instance one with CPU builds of torch.
ARG EXTRAS=train,draw,prompts
ARG PIP_ARGS=""

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HOME=/models \
    IMPROMPT_CACHE=/models/imprompt

COPY . /source
# hadolint ignore=DL3013,SC2086
RUN python -m pip install ${PIP_ARGS} "/source[${EXTRAS}]" \
    && rm -rf /source \
    && useradd --create-home imprompt \
    && mkdir --parents /models /work \
    && chown imprompt /models /work

# hadolint ignore=DL3066
USER imprompt
WORKDIR /work
VOLUME /models
ENTRYPOINT ["imprompt"]
CMD ["--help"]
