# vLLM with bitsandbytes, which left vLLM's own tree in 0.28. For 0.27 and older: BNB_PACKAGES=bitsandbytes
ARG VLLM_IMAGE
FROM ${VLLM_IMAGE}
ARG BNB_PACKAGES
RUN uv pip install --system --no-cache ${BNB_PACKAGES}
