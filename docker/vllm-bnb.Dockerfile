# vLLM with bitsandbytes, which left vLLM's own tree in 0.28. For 0.27 and older: BNB_PACKAGES=bitsandbytes
# Without BNB_PACKAGES: the locked packages. Context: the project's root.
ARG VLLM_IMAGE
FROM ${VLLM_IMAGE}
ARG BNB_PACKAGES
COPY docker/requirements/bnb.txt /tmp/bnb.txt
RUN uv pip install --system --no-cache ${BNB_PACKAGES:---no-deps --require-hashes --requirement /tmp/bnb.txt}
