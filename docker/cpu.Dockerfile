# isotrain on a CPU: docker build -f docker/cpu.Dockerfile -t isotrain . && docker run --rm isotrain doctor
# Not built by its authors.
FROM python:3.11-slim AS wheel
RUN apt-get update && apt-get install --yes --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*
COPY . /source
WORKDIR /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim
COPY --from=wheel /wheel /wheel
COPY constraints.txt /wheel/constraints.txt
# torch's CPU build: the package index's comes with CUDA's libraries, 5 GB on the disk.
RUN pip install --no-cache-dir --constraint /wheel/constraints.txt "$(grep ^torch== /wheel/constraints.txt)+cpu" \
    --extra-index-url https://download.pytorch.org/whl/cpu /wheel/isotrain-*.whl \
    && useradd --create-home isotrain
USER isotrain
WORKDIR /home/isotrain
ENTRYPOINT ["isotrain"]
CMD ["doctor"]
