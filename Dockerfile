# A CPU image with both commands; the page and the baselines need their own requirements.
#   docker build -t edarfusion .
#   docker run --rm -v "$PWD/data:/data" -v "$PWD/out:/out" edarfusion \
#       edarfusion-fuse --modality CT --fixed /data/MRI --moving /data/CT --output /out
FROM python:3.12-slim

RUN useradd --create-home user
WORKDIR /src
COPY requirements.txt ./
# PyTorch for Linux brings CUDA. Its install page has the line for a smaller CPU build, to be run before this one.
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
RUN pip install --no-cache-dir --no-deps . && rm -rf /src/build

# Results belong to whoever runs it: docker run --user "$(id -u):$(id -g)".
USER user
WORKDIR /home/user
ENV PYTHONUNBUFFERED=1
CMD ["edarfusion-fuse", "--help"]
