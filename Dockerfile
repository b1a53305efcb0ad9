# A CPU image with both commands; the page and the baselines need their own requirements.
#   docker build -t edarfusion .
#   docker run --rm -v "$PWD/data:/data" -v "$PWD/out:/out" edarfusion \
#       edarfusion-fuse --modality CT --fixed /data/MRI --moving /data/CT --output /out
FROM python:3.12-slim

# pip's own torch for Linux brings CUDA, gigabytes that a CPU has no use for.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN useradd --create-home user
WORKDIR /src
COPY requirements.txt ./
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -r requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps . && rm -rf /src/build

# Results belong to whoever runs it: docker run --user "$(id -u):$(id -g)".
USER user
WORKDIR /home/user
ENV PYTHONUNBUFFERED=1
CMD ["edarfusion-fuse", "--help"]
