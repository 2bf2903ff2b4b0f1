# fastcifar on NVIDIA's PyTorch image, which has torch, DALI and apex built for its CUDA:
#
#     docker build -t fastcifar .
#     docker run --rm --gpus all -v "$PWD/runs:/workspace/runs" -v fastcifar-cache:/cache fastcifar --recipe speedrun94
#
# Needs the NVIDIA container toolkit and a driver for the CUDA of the image. The image's own list of pinned packages
# (/etc/pip/constraint.txt) keeps pip from replacing its torch.
ARG IMAGE=nvcr.io/nvidia/pytorch:26.05-py3
FROM ${IMAGE}

WORKDIR /opt/fastcifar
COPY pyproject.toml setup.py requirements-base.txt README.md LICENSE ./
COPY fastcifar fastcifar
RUN pip install --no-cache-dir . && rm -rf build

ENV FASTCIFAR_CACHE=/cache
WORKDIR /workspace
ENTRYPOINT ["fastcifar", "train"]
CMD ["--epochs", "30"]
