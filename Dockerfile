# The server on nothing at all: one static binary, the CAs, and the licences.
#
#   docker build -t embedding-server .
#   docker run -p 5000:5000 embedding-server
#
# tests/container/run builds it without a Docker engine or a registry, and runs the image.
ARG RUST=docker.io/library/rust:1.95-bookworm
FROM ${RUST} AS build
# Or `release`, which is quicker to build.
ARG PROFILE=dist
# Where another build was made, whose `target` is mounted: cargo takes from it what was built of the same path.
ARG SOURCE=/src
WORKDIR ${SOURCE}
COPY . .
# The flags are for the program alone, so that its libraries are those of any other build.
RUN cargo rustc --locked --profile "$PROFILE" --bin embedding-server -- \
        -C target-feature=+crt-static -C relocation-model=static -C strip=symbols \
    && install -D "target/$PROFILE/embedding-server" /image/embedding-server \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && install -D -m 644 -t /image/licenses LICENSE THIRD_PARTY.txt packaging/sbom.cdx.json \
    && install -d -m 1777 /image/tmp \
    && install -d -m 775 -o 65532 -g 0 /image/models

FROM scratch
COPY --from=build /image /
# No name, since there is no /etc/passwd; Kubernetes can check a number with runAsNonRoot. Group 0, as OpenShift has it.
USER 65532:0
WORKDIR /models
# The Hub's cache is beside the models that are mounted there.
ENV EMBEDDING_SERVER_HOST=0.0.0.0 HF_HOME=/models/huggingface SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s CMD ["/embedding-server", "health"]
ENTRYPOINT ["/embedding-server"]
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="embedding-server" \
      org.opencontainers.image.description="An OpenAI-compatible embeddings server over LLMs' own token embeddings" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
