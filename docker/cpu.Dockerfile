# isotrain on a CPU: docker build -f docker/cpu.Dockerfile -t isotrain . && docker run --rm isotrain doctor
FROM python:3.11-slim AS wheel
RUN apt-get update && apt-get install --yes --no-install-recommends g++ git && rm -rf /var/lib/apt/lists/*
COPY . /source
WORKDIR /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim
COPY --from=wheel /wheel /wheel
COPY constraints.txt /wheel/constraints.txt
# torch's CPU build first: the package index's comes with CUDA's libraries, some GB.
RUN pip install --no-cache-dir --constraint /wheel/constraints.txt torch --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir --constraint /wheel/constraints.txt /wheel/isotrain-*.whl \
    && useradd --create-home isotrain
USER isotrain
WORKDIR /home/isotrain
ENTRYPOINT ["isotrain"]
CMD ["doctor"]
