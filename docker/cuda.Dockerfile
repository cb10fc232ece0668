# isotrain on an NVIDIA GPU: docker build -f docker/cuda.Dockerfile -t isotrain-cuda .
# docker run --gpus all --name check isotrain-cuda gpu-check --out found && docker cp check:/home/isotrain/found .
# Not built or run by its authors.
FROM python:3.11-slim AS wheel
RUN apt-get update && apt-get install --yes --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*
COPY . /source
WORKDIR /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim
COPY --from=wheel /wheel /wheel
COPY constraints.txt /wheel/constraints.txt
# The torch of the package index has CUDA's libraries with it; triton compiles for the GPU with this image's gcc.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir --constraint /wheel/constraints.txt /wheel/isotrain-*.whl \
    && useradd --create-home isotrain
USER isotrain
WORKDIR /home/isotrain
ENTRYPOINT ["isotrain"]
CMD ["doctor"]
