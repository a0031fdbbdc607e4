# docker build -t matchlib:0.1.0 .   Then: snakemake --sdm apptainer ...
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make && rm -rf /var/lib/apt/lists/*
COPY . /opt/matchlib
RUN cd /opt/matchlib && pip install --no-cache-dir -c constraints.txt torch==2.13.0 -e .
