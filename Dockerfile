# Builds an image with only a static binary, the certificate authorities, and the licenses.
#
#   docker build -t embedding-server .
#   docker run -p 5000:5000 embedding-server
#
# tests/container/run builds and runs the image without a Docker engine or a registry.
ARG RUST=docker.io/library/rust:1.95-bookworm
FROM ${RUST} AS build
# The profile of cargo: `dist`, or `release`, which builds faster.
ARG PROFILE=dist
# The path of the sources. tests/container/run sets it to the path of an earlier build whose target directory it mounts, because cargo
# reuses only what was built from the same path.
ARG SOURCE=/src
WORKDIR ${SOURCE}
COPY . .
# `cargo rustc` applies the flags only to the program, so its libraries are the same as in any other build.
RUN cargo rustc --locked -p embedding-server --profile "$PROFILE" --bin embedding-server -- \
        -C target-feature=+crt-static -C relocation-model=static -C strip=symbols \
    && install -D "target/$PROFILE/embedding-server" /image/embedding-server \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && install -D -m 644 -t /image/licenses LICENSE THIRD_PARTY.txt packaging/sbom.cdx.json \
    && install -d -m 1777 /image/tmp \
    && install -d -m 775 -o 65532 -g 0 /image/models

FROM scratch
COPY --from=build /image /
# A number, because there is no /etc/passwd, and because runAsNonRoot of Kubernetes can check a number. Group 0 is the group that
# OpenShift uses.
USER 65532:0
WORKDIR /models
# The cache of the Hub is in the directory at which models are mounted.
ENV EMBEDDING_SERVER_HOST=0.0.0.0 HF_HOME=/models/huggingface SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s CMD ["/embedding-server", "health"]
ENTRYPOINT ["/embedding-server"]
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="embedding-server" \
      org.opencontainers.image.description="An OpenAI-compatible embeddings server that uses the token embeddings of LLMs" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
